"""The rules that FineWeb adds to Gopher's and C4's."""

from typing import Self

from data_prep.config import PrepConfig
from data_prep.filter_config import FineWebConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, above, below
from data_prep.filters.punctuation import TERMINAL
from data_prep.filters.rules.gopher_repetition import repeated

_KEY = "filters.fineweb"
_TERMINAL = tuple(TERMINAL)


class FineWeb(DocumentFilter):
    """Penedo et al. 2024 (arXiv 2406.17557), section 3.6, "Developing additional heuristic filters".

    Lines that are blank do not count.
    """

    reason = "fineweb"
    config_keys = (_KEY,)

    def __init__(self, config: FineWebConfig) -> None:
        self.config = config

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rules, where they are on."""
        return cls(config.filters.fineweb) if config.filters.fineweb.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The first rule that the text breaks."""
        config = self.config
        lines = [line for line in text.text.split("\n") if line and not line.isspace()]
        ended = sum(line.endswith(_TERMINAL) for line in lines) / max(len(lines), 1)
        refused = below("line_punctuation", ended, f"{_KEY}.min_line_punctuation", config.min_line_punctuation)
        if refused:
            return refused
        short = sum(len(line) <= config.short_line_length for line in lines) / max(len(lines), 1)
        newlines = text.text.count("\n")
        copied = repeated(lines)[1] / max(len(text.text) - newlines, 1)
        return (
            above("short_lines", short, f"{_KEY}.max_short_lines", config.max_short_lines)
            or above("repeated_lines", copied, f"{_KEY}.max_repeated_lines", config.max_repeated_lines)
            or above("lists", newlines / max(len(text.words), 1), f"{_KEY}.max_newlines", config.max_newlines)
        )

"""Lines and paragraphs that a document repeats."""

from typing import Self

from data_prep.config import PrepConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Verdict


class RepeatedLines(DocumentFilter):
    """Leaves of lines that stand in a document more than once the first alone, from a length on: menus, footers and
    what a page shows twice. White space at the ends and case do not count.
    """

    reason = "repeated_lines"
    config_keys = ("filters.repeated_lines",)

    def __init__(self, min_characters: int) -> None:
        self.min_characters = min_characters

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The filter, where it is on."""
        options = config.filters.repeated_lines
        return cls(options.min_characters) if options.enabled else None

    def check(self, text: AnalysedText) -> Verdict:
        """The text without the lines that repeat an earlier one."""
        seen: set[str] = set()
        kept = []
        lines = text.text.split("\n")
        for line in lines:
            key = repeatable(line, self.min_characters)
            if key is not None:
                if key in seen:
                    continue
                seen.add(key)
            kept.append(line)
        return None if len(kept) == len(lines) else "\n".join(kept)


def repeatable(line: str, min_characters: int) -> str | None:
    """What a line is compared with others by, without white space at the ends and case; None for a shorter one."""
    key = line.strip().casefold()
    return key if len(key) >= min_characters else None

"""The quality rules of MassiveText, the corpus of Gopher."""

from typing import Self

from data_prep.config import PrepConfig
from data_prep.filter_config import GopherQualityConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, above, below

_KEY = "filters.gopher_quality"


class GopherQuality(DocumentFilter):
    """Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1, "Quality Filtering"; read as datatrove reads it.

    Words and mean length count no words of signs alone; the share of alphabetic words and the symbol ratios are of
    all words.
    """

    reason = "gopher_quality"
    config_keys = (_KEY,)

    def __init__(self, config: GopherQualityConfig) -> None:
        self.config = config
        self._stop_words = frozenset(config.stop_words)

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rules, where they are on."""
        return cls(config.filters.gopher_quality) if config.filters.gopher_quality.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The first rule that the text breaks."""
        return self._words(text) or self._symbols(text) or self._lines(text) or self._letters(text)

    def _words(self, text: AnalysedText) -> Refusal | None:
        config, spoken = self.config, text.spoken
        count = int(spoken.sum())
        mean = int(text.lengths[spoken].sum()) / max(count, 1)
        return (
            below("few_words", count, f"{_KEY}.min_words", config.min_words)
            or above("many_words", count, f"{_KEY}.max_words", config.max_words)
            or below("short_words", mean, f"{_KEY}.min_mean_word_length", config.min_mean_word_length)
            or above("long_words", mean, f"{_KEY}.max_mean_word_length", config.max_mean_word_length)
        )

    def _symbols(self, text: AnalysedText) -> Refusal | None:
        words, limit = max(len(text.words), 1), self.config.max_symbol_ratio
        hashes = text.text.count("#") / words
        ellipses = (text.text.count("...") + text.text.count("…")) / words
        key = f"{_KEY}.max_symbol_ratio"
        return above("hashes", hashes, key, limit) or above("ellipses", ellipses, key, limit)

    def _lines(self, text: AnalysedText) -> Refusal | None:
        lines = text.lines
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / max(len(lines), 1)
        ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines) / max(len(lines), 1)
        return above("bullets", bullets, f"{_KEY}.max_bullet_lines", self.config.max_bullet_lines) or above(
            "ellipsis_lines", ellipses, f"{_KEY}.max_ellipsis_lines", self.config.max_ellipsis_lines
        )

    def _letters(self, text: AnalysedText) -> Refusal | None:
        share = int(text.alphabetic.sum()) / max(len(text.words), 1)
        stop_words = len(self._stop_words.intersection(text.words))
        return below("few_letters", share, f"{_KEY}.min_alphabetic_words", self.config.min_alphabetic_words) or below(
            "few_stop_words", stop_words, f"{_KEY}.min_stop_words", self.config.min_stop_words
        )

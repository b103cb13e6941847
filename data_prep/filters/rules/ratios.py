"""Shares of stop words, punctuation and upper case, as GottBERT's corpus was filtered by."""

from typing import Self

from data_prep.config import PrepConfig
from data_prep.filter_config import RatiosConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, above, below

_KEY = "filters.ratios"


class Ratios(DocumentFilter):
    """Scheible et al. 2024, "GottBERT: a pure German language model" (arXiv 2012.02110): stop word ratio, punctuation
    ratio and upper token ratio.

    Stop words, in any case, are a share of the words that are more than signs, and so are words of capitals alone;
    words of signs alone are a share of all words.
    """

    reason = "ratios"
    config_keys = (_KEY,)

    def __init__(self, config: RatiosConfig) -> None:
        self.config = config
        self._stop_words = frozenset(word.lower() for word in config.stop_words)

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rules, where they are on."""
        return cls(config.filters.ratios) if config.filters.ratios.enabled else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The first share that is out of its limits."""
        config, words = self.config, text.words
        spoken = int(text.spoken.sum())
        stop_words = sum(word.lower() in self._stop_words for word in words) / max(spoken, 1)
        punctuation = (len(words) - spoken) / max(len(words), 1)
        upper_case = sum(len(word) > 1 and word.isupper() for word in words) / max(spoken, 1)
        return (
            below("stop_words", stop_words, f"{_KEY}.min_stop_words", config.min_stop_words)
            or above("punctuation", punctuation, f"{_KEY}.max_punctuation", config.max_punctuation)
            or above("upper_case", upper_case, f"{_KEY}.max_upper_case", config.max_upper_case)
        )

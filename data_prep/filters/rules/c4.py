"""The rules of C4, the corpus of T5."""

import re
from typing import Self

from data_prep.config import PrepConfig
from data_prep.filter_config import C4Config
from data_prep.filters.analysis import AnalysedText, count_sentences
from data_prep.filters.document_filter import DocumentFilter, Refusal, Verdict, below

_KEY = "filters.c4"
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_END = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LOREM = "lorem ipsum"
_LINE_WORDS = ("javascript", *_POLICY)


class C4(DocumentFilter):
    """Raffel et al. 2020 (JMLR 21, 20-074), section 2.2, and what the authors' code adds (c4_utils.py of
    TensorFlow Datasets): lines with very long words or about cookies and terms of use go, and marks of citations.

    Lines are dropped or kept; the document is dropped where too few sentences are left, or for "lorem ipsum" or a
    curly bracket. The list of bad words is not part of it: name such words in a filter of your own.
    """

    reason = "c4"
    config_keys = (_KEY,)

    def __init__(self, config: C4Config) -> None:
        self.config = config

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rules, where they are on."""
        return cls(config.filters.c4) if config.filters.c4.enabled else None

    def check(self, text: AnalysedText) -> Verdict:
        """The lines that are kept, or why the document is dropped."""
        lower = text.lower
        citations = "[" in text.text
        # Most texts have none of these words: their lines need not be looked at for them. A citation may hide one.
        suspicious = citations or any(word in lower for word in (_LOREM, *_LINE_WORDS))
        kept: list[str] = []
        sentences = 0
        for line in text.lines:
            line = line.strip()
            if not self._fits(line):
                continue
            if citations:
                line = _CITATION.sub("", line)
            if self.config.terminal_punctuation and (not line.endswith(_END) or line.endswith("...")):
                continue
            folded = line.lower() if suspicious else ""
            if _LOREM in folded:
                return Refusal(rule="lorem_ipsum", detail=f"has '{_LOREM}'")
            if "javascript" in folded:
                continue
            if self.config.curly_brackets and "{" in line:
                return Refusal(rule="curly_bracket", detail=f"has '{{', {_KEY}.curly_brackets is true")
            if folded and any(words in folded for words in _POLICY):
                continue
            sentences += count_sentences(line)
            kept.append(line)
        refused = below("few_sentences", sentences, f"{_KEY}.min_sentences", self.config.min_sentences)
        if refused:
            return refused
        left = "\n".join(kept).strip()
        return None if left == text.text else left

    def _fits(self, line: str) -> bool:
        """Whether a line has enough words, none of them too long."""
        words = line.split()
        longest = self.config.max_word_length
        if longest is not None and len(line) > longest and any(len(word) > longest for word in words):
            return False
        return len(words) >= (self.config.min_words_per_line or 0)

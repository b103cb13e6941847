"""What the rules of all filters ask of one text: each is computed once, when it is first asked for."""

import re
from collections.abc import Iterable
from functools import cache, cached_property

import numpy as np

from data_prep.contract.text.scripts import COMPLEX_CONTEXT, IDEOGRAPHS, JOINERS, MARK_PLANES, is_mark
from data_prep.corpus.documents import Document
from data_prep.filters.word_facts import WordFacts
from data_prep.filters.word_ngrams import has_marks_or_no_blanks

WORD = re.compile(r"\w+(?:(?<=\d)[.,]\d+)*|(?<=\w)['’]\w+|([^\w\s])\1*")
"""Letters and digits that stand together, 1,000.5 as one and don't as two; a run of one other sign is a word too."""


@cache
def _word_of_all_scripts() -> re.Pattern[str]:
    """``WORD`` for texts with marks, or of scripts without blanks.

    A mark or joiner belongs to the letter before it, an ideograph or kana is a word, and so is a letter of South East
    Asia with its marks, as in ``word_ngrams``.
    """
    marks = _class(code for code in MARK_PLANES if is_mark(chr(code))) + JOINERS
    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*IDEOGRAPHS, *COMPLEX_CONTEXT))
    letters = rf"(?:[^\W{unspaced}{marks}]++|[{marks}]++)++"  # possessive: a long word takes no memory
    words = (
        rf"[{unspaced}](?<=\w)[{marks}]*|{letters}(?:(?<=\d)[.,]\d+)*"
        rf"|(?<=[\w{marks}])['’]{letters}|([^\w\s{marks}])\1*"
    )
    return re.compile(words)


def _class(codes: Iterable[int]) -> str:
    """Code points as what stands inside the brackets of a regular expression."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)


_CLOSING = "\"'”’»)]}"
_SENTENCE_END = re.compile(rf"[.!?。！？।؟…]+[{re.escape(_CLOSING)}]*(?=\s+\S|$)")

_words = WordFacts()
"""Of the words that this process has met."""


class AnalysedText:
    """One text, and what is known of it so far."""

    def __init__(self, document: Document, language: str | None = None) -> None:
        self.document = document
        self.text = document.text
        self.language = language
        """Its code, where it has been identified."""

    @cached_property
    def words(self) -> list[str]:
        """The words in their order, signs included (see ``WORD``); where a script writes no blanks, its letters."""
        pattern = _word_of_all_scripts() if has_marks_or_no_blanks(self.text) else WORD
        return [found.group() for found in pattern.finditer(self.text)]

    @cached_property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @cached_property
    def lines(self) -> list[str]:
        """The lines, as ``str.splitlines`` has them."""
        return self.text.splitlines()

    @cached_property
    def _facts(self) -> dict[str, np.ndarray]:
        return _words.of(self.words)  # all at once: places of words do not outlast the next text

    @cached_property
    def lengths(self) -> np.ndarray:
        """[words] i64, characters of each word."""
        return self._facts["lengths"]

    @cached_property
    def hashes(self) -> np.ndarray:
        """[words] u64, a hash of each word."""
        return self._facts["hashes"]

    @cached_property
    def spoken(self) -> np.ndarray:
        """[words] bool, whether a word is more than punctuation."""
        return self._facts["spoken"]

    @cached_property
    def alphabetic(self) -> np.ndarray:
        """[words] bool, whether a word has a letter."""
        return self._facts["alphabetic"]


def count_sentences(line: str) -> int:
    """Sentences of a line: a stop and what closes behind it end one, and so does the end of a line with words."""
    ends = [found.end() for found in _SENTENCE_END.finditer(line)]
    rest = line[ends[-1] :] if ends else line
    return len(ends) + (not rest.isspace() and rest != "")

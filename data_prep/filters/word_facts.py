"""What is known of a word by itself, looked up once for each different word."""

import numpy as np
import xxhash

from data_prep.filters.punctuation import PUNCTUATION
from data_prep.filters.word_ngrams import as_bytes

MOST_WORDS = 1 << 18
"""Words that are remembered from one text to the next."""

MOST_CHARACTERS = 1 << 23
"""And their characters."""


class WordFacts(dict[str, int]):
    """Word -> its place in the columns ``lengths``, ``hashes``, ``spoken`` and ``alphabetic``.

    Call ``ids`` with all words of a text: places hold until its next call.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._characters = 0
        size = 1 << 12
        self.lengths = np.zeros(size, dtype=np.int64)
        self.hashes = np.zeros(size, dtype=np.uint64)
        self.spoken = np.zeros(size, dtype=bool)
        self.alphabetic = np.zeros(size, dtype=bool)

    def __missing__(self, word: str) -> int:
        place = len(self)
        if place == len(self.lengths):
            for name in ("lengths", "hashes", "spoken", "alphabetic"):
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self.lengths[place] = len(word)
        self.hashes[place] = xxhash.xxh3_64_intdigest(as_bytes(word))
        self.spoken[place] = not PUNCTUATION.issuperset(word)
        self.alphabetic[place] = any(map(str.isalpha, word))
        self._characters += len(word)
        self[word] = place
        return place

    def ids(self, words: list[str]) -> np.ndarray:
        """[words] i64, the place of each word."""
        if len(self) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._forget()
        return np.fromiter(map(self.__getitem__, words), dtype=np.int64, count=len(words))

"""What is known of a word by itself, looked up once for each different word."""

import numpy as np
import xxhash

from data_prep.filters.punctuation import PUNCTUATION
from data_prep.filters.word_ngrams import as_bytes

MOST_WORDS = 1 << 18
"""Words that are remembered from one text to the next."""

MOST_CHARACTERS = 1 << 23
"""And their characters."""


_COLUMNS = {"lengths": np.int64, "hashes": np.uint64, "spoken": np.bool_, "alphabetic": np.bool_}


class WordFacts(dict[str, int]):
    """Word -> its place in the columns of what is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._characters = 0
        self._columns = {name: np.zeros(1 << 12, dtype=dtype) for name, dtype in _COLUMNS.items()}

    def __missing__(self, word: str) -> int:
        place = len(self)
        if place == len(self._columns["lengths"]):
            self._columns = {name: np.concatenate([c, np.zeros_like(c)]) for name, c in self._columns.items()}
        columns = self._columns
        columns["lengths"][place] = len(word)
        columns["hashes"][place] = xxhash.xxh3_64_intdigest(as_bytes(word))
        columns["spoken"][place] = not PUNCTUATION.issuperset(word)
        columns["alphabetic"][place] = any(map(str.isalpha, word))
        self._characters += len(word)
        self[word] = place
        return place

    def of(self, words: list[str]) -> dict[str, np.ndarray]:
        """What is known of each word of a text.

        Returns:
            [words] each: ``lengths`` i64 in characters, ``hashes`` u64, ``spoken`` whether it is more than punctuation,
            ``alphabetic`` whether it has a letter.
        """
        if len(self) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._forget()
        places = np.fromiter(map(self.__getitem__, words), dtype=np.int64, count=len(words))
        return {name: column[places] for name, column in self._columns.items()}

"""Texts -> token ids, with the ids of the library at a fraction of its time where the tokenizer is BERT's.

BERT's normaliser and pre-tokenizer never look across ASCII white space or ASCII punctuation: a text's tokens
are those of its words, one after the other. So each distinct word goes through the library once, and a text
is a list of look-ups. Every other tokenizer takes the library's own way.
"""

import json
import re
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

# White space that BERT's normaliser turns into a blank, and ASCII punctuation, which its pre-tokenizer cuts off.
# Anything else stays inside a word, and what it means (a control character, an accent) is the library's to say.
_WORDS = re.compile(r"[^ \t\n\r!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
TABLE_WORDS = 1 << 20
"""Distinct words at which the table is started again, which bounds its memory to some hundred megabytes."""

LIBRARY_CHARACTERS = 1 << 19
"""Text handed to the library at once, which bounds the memory of its results."""


class TextEncoder:
    """Encodes texts without special tokens; ids are those of ``tokenizer.encode_batch_fast``."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._by_words = encodes_word_by_word(tokenizer)
        self._table = _WordTable(tokenizer, dtype)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts, one after the other, and [texts] i64 how many each has."""
        if not self._by_words:
            return self._encode_with_library(texts)
        if len(self._table) > TABLE_WORDS:
            self._table = _WordTable(self._tokenizer, self._dtype)
        found = [self._table.look_up(_WORDS.findall(text)) for text in texts]
        self._table.encode_new_words()
        encoded = [self._table.tokens(words) for words in found]
        return _joined(encoded, self._dtype)

    def _encode_with_library(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded: list[np.ndarray] = []
        batch: list[str] = []
        size = 0
        for number, text in enumerate(texts, start=1):
            batch.append(text)
            size += len(text)
            if size >= LIBRARY_CHARACTERS or number == len(texts):
                results = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                encoded += [np.array(result.ids, dtype=self._dtype) for result in results]
                batch, size = [], 0
        return _joined(encoded, self._dtype)


def encodes_word_by_word(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words: a BERT tokenizer that registers nothing but special tokens."""
    content = json.loads(tokenizer.to_str())
    normalizer, pre_tokenizer = content["normalizer"] or {}, content["pre_tokenizer"] or {}
    return (
        content["model"].get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        and all(token["special"] for token in content["added_tokens"])
        and tokenizer.encode_special_tokens
    )


def _joined(encoded: list[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
    return np.concatenate([np.empty(0, dtype=dtype), *encoded]), lengths


class _WordTable:
    """Word -> its tokens, filled as words come."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._tokenizer = tokenizer
        self._numbers = _Numbers()
        self._tokens = np.empty(0, dtype=dtype)
        self._offsets = np.zeros(1, dtype=np.int64)  # [words + 1]

    def __len__(self) -> int:
        return len(self._numbers)

    def look_up(self, words: list[str]) -> np.ndarray:
        """[words] i32 numbers of the words; those of new words get tokens by ``encode_new_words``."""
        return np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int32, count=len(words))

    def encode_new_words(self) -> None:
        """Let the library encode the words that were looked up for the first time."""
        new = self._numbers.new
        if not new:
            return
        encoded = [e.ids for e in self._tokenizer.encode_batch_fast(new, add_special_tokens=False)]
        tokens = [token for ids in encoded for token in ids]
        ends = self._offsets[-1] + np.cumsum([len(ids) for ids in encoded], dtype=np.int64)
        self._tokens = np.concatenate([self._tokens, np.array(tokens, dtype=self._tokens.dtype)])
        self._offsets = np.concatenate([self._offsets, ends])
        self._numbers.new = []

    def tokens(self, words: np.ndarray) -> np.ndarray:
        """The tokens of numbered words, one after the other."""
        starts = self._offsets[words]
        counts = self._offsets[words + 1] - starts
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        return self._tokens[np.repeat(starts - ends + counts, counts) + np.arange(total)]


class _Numbers(dict[str, int]):
    """Word -> number in order of first look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self.new.append(word)
        return number

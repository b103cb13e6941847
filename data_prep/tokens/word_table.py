"""Texts -> token ids, with the ids of the library at a fraction of its time where the tokenizer is BERT's.

BERT's normaliser and pre-tokenizer never look across ASCII white space, ASCII punctuation or the edge of an ideograph:
a text's tokens are those of its words, one after the other. So each distinct word goes through the library once, and a
text is a list of look-ups. Every other tokenizer takes the library's own way, and so does a text of long words: most of
them would be looked up once and never again.
"""

import json
import re
import sys
from collections.abc import Sequence

import numpy as np
from tokenizers import Regex, Tokenizer, pre_tokenizers

from data_prep.contract.text.normalizers import is_wordpiece_normalizer, without_cleaning
from data_prep.contract.text.scripts import LONG_PHRASE

_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
"""Characters that BERT's normaliser puts blanks around (``is_chinese_char`` of the library)."""

# White space that BERT's normaliser turns into a blank, and ASCII punctuation, which its pre-tokenizer cuts off.
# Anything else stays inside a word, and what it means (a control character, an accent) is the library's to say.
_ASCII_WORDS = re.compile(r"[^ \t\n\r!-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]")
_WORDS = re.compile(rf"[^ \t\n\r!-/:-@\[-`{{-~{_IDEOGRAPHS}]+|[!-/:-@\[-`{{-~{_IDEOGRAPHS}]")
_ANY_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")

TABLE_BYTES = 1 << 27
"""Memory at which the table is started again; one batch of texts is held besides."""

ENTRY_BYTES = 150
"""Memory of an entry of the table, besides its word: the entry of the dict, its number, its tokens."""

LONG_WORDS = 12
"""Characters for each word of a text, blanks included, above which the table takes longer than the library."""

LIBRARY_CHARACTERS = 1 << 19
"""Text handed to the library at once, which bounds the memory of its results."""


class TextEncoder:
    """Encodes cleaned texts without special tokens; ids are those of ``tokenizer.encode_batch_fast``."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        tokenizer = without_cleaning(tokenizer)
        self.tokenizer = tokenizer
        """What encodes the texts: the given one, without the steps that find nothing in cleaned texts."""
        self._dtype = dtype
        self._by_words = encodes_word_by_word(tokenizer)
        self._cuts_ideographs = self._by_words and _cuts_ideographs(tokenizer)
        self._table = _WordTable(tokenizer, dtype)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all texts, one after the other, and [texts] i64 how many each has."""
        if not self._by_words:
            return _joined(self._encode_with_library(texts), self._dtype)
        if self._table.num_bytes > TABLE_BYTES:
            self._table = _WordTable(self.tokenizer, self._dtype)
        found: list[np.ndarray | None] = []
        long: list[str] = []
        for text in texts:
            words = self._words(text)
            if len(text) > LONG_WORDS * len(words):
                long.append(text)
                found.append(None)
            else:
                found.append(self._table.look_up(words))
        self._table.encode_new_words()
        of_long = iter(self._encode_with_library(long))
        return _joined([next(of_long) if f is None else self._table.tokens(f) for f in found], self._dtype)

    def _words(self, text: str) -> list[str]:
        cut = self._cuts_ideographs and not text.isascii() and _ANY_IDEOGRAPH.search(text)
        return (_WORDS if cut else _ASCII_WORDS).findall(text)

    def _encode_with_library(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = []
        batch: list[str] = []
        size = 0
        for number, text in enumerate(texts, start=1):
            batch.append(text)
            size += len(text)
            if size >= LIBRARY_CHARACTERS or number == len(texts):
                results = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                encoded += [np.array(result.ids, dtype=self._dtype) for result in results]
                batch, size = [], 0
        return encoded


def encodes_word_by_word(tokenizer: Tokenizer) -> bool:
    """Whether a text's tokens are those of its words: a BERT tokenizer that registers nothing but special tokens."""
    content = json.loads(tokenizer.to_str())
    normalizer, pre_tokenizer = content["normalizer"] or {}, content["pre_tokenizer"] or {}
    return (
        content["model"].get("type") == "WordPiece"
        and (is_wordpiece_normalizer(normalizer) or normalizer.get("clean_text") is True)
        and _cuts_as_bert(pre_tokenizer)
        and all(token["special"] for token in content["added_tokens"])
        and tokenizer.encode_special_tokens
    )


def _cuts_as_bert(pre_tokenizer: dict) -> bool:
    """Whether the pre-tokenizer of a tokenizer.json is BERT's, alone or behind a cut of phrases without blanks."""
    *cuts, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    phrase = json.loads(pre_tokenizers.Split(Regex(LONG_PHRASE), behavior="isolated").__getstate__())
    return last.get("type") == "BertPreTokenizer" and cuts in ([], [phrase])


def _cuts_ideographs(tokenizer: Tokenizer) -> bool:
    normalizer = json.loads(tokenizer.to_str())["normalizer"]
    return any(step.get("handle_chinese_chars") is True for step in normalizer.get("normalizers", [normalizer]))


def _joined(encoded: list[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
    return np.concatenate([np.empty(0, dtype=dtype), *encoded]), lengths


class _WordTable:
    """Word -> its tokens, filled as words come."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._tokenizer = tokenizer
        self._numbers = _Numbers()
        self.num_bytes = 0
        """Memory of the words and their entries, roughly."""
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
        self.num_bytes += sum(map(sys.getsizeof, new)) + ENTRY_BYTES * len(new)
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

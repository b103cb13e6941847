"""What a tokenizer does not keep of a text: words that become [UNK], accents and vowel signs that it strips."""

import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
from tokenizers import Tokenizer

from data_prep.contract.text.scripts import is_mark
from data_prep.tokens.word_table import TextEncoder

SAMPLED_CHARACTERS = 256
"""Beginning of a text in which stripped marks are counted."""

LIMIT = 0.01
"""Share of the tokens or characters above which a loss is told."""

_BATCH_CHARACTERS = 1 << 19


Group = TypeVar("Group", bound=Hashable)


class TokenCounter(Generic[Group]):
    """Adds up what a tokenizer makes of cleaned texts, for each group of them: ``words`` at white space, ``tokens``,
    ``unknown_tokens`` that are [UNK], and the counts of ``stripped_marks``."""

    def __init__(self, encoder: TextEncoder, unknown_id: int) -> None:
        self.tokenizer = encoder.tokenizer
        self._encoder, self._unknown_id = encoder, unknown_id
        self._batch: list[tuple[Group, str]] = []
        self._size = 0
        self._counts: dict[Group, Counter[str]] = {}

    def add(self, group: Group, text: str) -> None:
        """Count a text."""
        self._batch.append((group, text))
        self._size += len(text)
        if self._size >= _BATCH_CHARACTERS:
            self._encode()

    def taken(self) -> dict[Group, dict[str, int]]:
        """The counts of each group since they were taken last."""
        self._encode()
        counts, self._counts = self._counts, {}
        return {group: dict(found) for group, found in counts.items()}

    def _encode(self) -> None:
        tokens, lengths = self._encoder.encode([text for _, text in self._batch])
        unknown = np.concatenate([[0], np.cumsum(tokens == self._unknown_id)])
        ends = np.cumsum(lengths)
        of_each = zip(lengths.tolist(), (unknown[ends] - unknown[ends - lengths]).tolist(), strict=True)
        for (group, text), (number, of_unknown) in zip(self._batch, of_each, strict=True):
            counts = self._counts.setdefault(group, Counter())
            counts.update(stripped_marks(self.tokenizer, text))
            counts.update(words=len(text.split()), tokens=number, unknown_tokens=of_unknown)
        self._batch, self._size = [], 0


def stripped_marks(tokenizer: Tokenizer, text: str) -> dict[str, int]:
    """How many letters the normaliser strips of their marks at the beginning of a cleaned text.

    Returns:
        ``sampled_characters`` that were looked at, and ``stripped_marks``, letters without their marks now.
    """
    sampled = text[:SAMPLED_CHARACTERS]
    stripped = 0
    if tokenizer.normalizer is not None and not sampled.isascii():
        stripped = max(0, _marked(sampled) - _marked(tokenizer.normalizer.normalize_str(sampled)))
    return {"sampled_characters": len(sampled), "stripped_marks": stripped}


def _marked(text: str) -> int:
    """Letters with marks, but for variation selectors, which only choose a picture."""
    decomposed = unicodedata.normalize("NFD", text)
    marks = [is_mark(character) and not "\ufe00" <= character <= "\ufe0f" for character in decomposed]
    return sum(mark and not before for before, mark in pairwise([False, *marks]))


def notes_on_losses(unknown: float, counts: Mapping[str, int]) -> list[str]:
    """What the user is told where more than ``LIMIT`` is lost.

    Args:
        unknown: share of the tokens that are [UNK].
        counts: of ``stripped_marks``, added up.
    """
    lines = []
    stripped = counts.get("stripped_marks", 0) / max(counts.get("sampled_characters", 0), 1)
    if stripped > LIMIT:
        lines.append(
            f"the tokenizer strips accents or vowel signs of {stripped:.1%} of the characters: where they tell words "
            "apart, train one with --vocabulary.strip_accents false"
        )
    if unknown > LIMIT:
        lines.append(
            f"{unknown:.1%} of the tokens are [UNK], words with characters that the tokenizer does not know: train one "
            "on this text with a larger --vocabulary.size or --vocabulary.alphabet_size, or with --vocabulary.model bpe"
        )
    return lines

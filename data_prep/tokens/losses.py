"""What a tokenizer does not keep of a text: words that become [UNK], accents and vowel signs that it strips."""

import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer, models

from data_prep.contract.text.scripts import is_mark
from data_prep.contract.tokenizer import special_ids, vocabulary_size
from data_prep.tokens.word_table import TextEncoder

SAMPLED_CHARACTERS = 256
"""Beginning of a text in which stripped marks are counted."""

LIMIT = 0.01
"""Share of the tokens or characters above which a loss is told."""

_BATCH_CHARACTERS = 1 << 19


def unknown_share(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Share of the tokens of cleaned texts that are [UNK]; 0 where there are none. Takes all texts."""
    if isinstance(tokenizer.model, models.BPE):  # its alphabet is the bytes
        deque(texts, maxlen=0)
        return 0.0
    encoder = TextEncoder(tokenizer, np.dtype("<u2" if vocabulary_size(tokenizer) <= 1 << 16 else "<u4"))
    unk, unknown, total = special_ids(tokenizer)["unk"], 0, 0
    batch: list[str] = []

    def count() -> tuple[int, int]:
        tokens, _ = encoder.encode(batch)
        batch.clear()
        return int(np.count_nonzero(tokens == unk)), len(tokens)

    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            found, of = count()
            unknown, total, size = unknown + found, total + of, 0
    found, of = count()
    return (unknown + found) / max(total + of, 1)


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

"""What the masks of a shard folder follow from, beside its rows."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_prep.config import MaskConfig
from data_prep.contract.tokenizer import continues_word, load_tokenizer, ordinary_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """What masks follow from, beside the rows; the same for all rows of a folder."""

    mask: MaskConfig
    """Unit and fractions; its probability and per_row are resolved in ``masked_per_row``."""
    masked_per_row: int
    """P."""
    seed: int
    """Of the folder."""
    unmaskable_ids: np.ndarray
    """Ids never masked ([CLS], [SEP], [PAD])."""
    mask_id: int
    """Of [MASK]."""
    ordinary_ids: np.ndarray
    """Ids that a random replacement is drawn from, uniformly."""
    continues_word: np.ndarray | None
    """[vocabulary] bool, whether a token continues the word before it; None for unit token."""


def masking_of(
    mask: MaskConfig, *, masked_per_row: int, seed: int, special_ids: Mapping[str, int], tokenizer: Path
) -> Masking:
    """The masking of a folder.

    Args:
        mask: of its configuration.
        masked_per_row: P.
        seed: of its configuration.
        special_ids: role -> id.
        tokenizer: its tokenizer.json, which tells ordinary ids, and where words go on if the unit needs that.
    """
    loaded = load_tokenizer(tokenizer)
    return Masking(
        mask=mask,
        masked_per_row=masked_per_row,
        seed=seed,
        unmaskable_ids=np.array([special_ids[role] for role in ("cls", "sep", "pad")]),
        mask_id=special_ids["mask"],
        ordinary_ids=np.array(ordinary_ids(loaded), dtype=np.int64),
        continues_word=None if mask.unit == "token" else continues_word(loaded),
    )

"""Token streams -> rows of seq_length, across documents (FULL-SENTENCES of RoBERTa, Liu et al. 2019).

A row is [CLS] tokens [SEP]; where two documents meet inside a row a [SEP] stands between them. No token
is lost and only the last row may be short.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rows:
    """n packed rows of L tokens."""

    input_ids: np.ndarray
    """[n, L] token ids; [PAD] after the end of a short row"""
    lengths: np.ndarray
    """[n] u16, real tokens of each row, [CLS] and [SEP] included"""
    boundary_offsets: np.ndarray
    """[n + 1] u32: row i has boundary_positions[boundary_offsets[i]:boundary_offsets[i + 1]]"""
    boundary_positions: np.ndarray
    """u16, positions in the row at which a new document begins; the row's own first token is not one"""


def pack(documents: Sequence[np.ndarray], *, seq_length: int, pad: int, cls: int, sep: int, dtype: np.dtype) -> Rows:
    """Pack documents, each a 1-d array of token ids without special tokens, into rows.

    A separator that would be the first token of a row is left out, since the end of the row before it
    separates already. One that is the last of its row stays, beside the row's own [SEP], to keep it full.

    Args:
        seq_length: tokens a row (L), at least 3.
        dtype: of `input_ids`.
    """
    capacity = seq_length - 2  # without [CLS] and [SEP]
    separator = np.array([sep], dtype=dtype)
    pieces: list[np.ndarray] = []
    boundaries: list[int] = []  # offsets in the stream of all rows' contents
    filled = 0
    for document in documents:
        if not len(document):
            continue
        if filled % capacity:
            pieces.append(separator)
            filled += 1
            if filled % capacity:
                boundaries.append(filled)
        pieces.append(document.astype(dtype, copy=False))
        filled += len(document)
    num_rows = -(-filled // capacity)
    stream = np.full(num_rows * capacity, pad, dtype=dtype)
    if pieces:
        np.concatenate(pieces, out=stream[:filled])
    input_ids = np.full((num_rows, seq_length), sep, dtype=dtype)
    input_ids[:, 0] = cls
    input_ids[:, 1:-1] = stream.reshape(num_rows, capacity)
    lengths = np.full(num_rows, seq_length, dtype=np.uint16)
    if filled % capacity:
        lengths[-1] = filled % capacity + 2
        input_ids[-1, lengths[-1] - 1] = sep
        input_ids[-1, lengths[-1] :] = pad
    starts = np.array(boundaries, dtype=np.int64)
    return Rows(
        input_ids=input_ids,
        lengths=lengths,
        boundary_offsets=np.searchsorted(starts // capacity, np.arange(num_rows + 1)).astype(np.uint32),
        boundary_positions=(starts % capacity + 1).astype(np.uint16),
    )

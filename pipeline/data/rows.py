"""The stored fields of rows as the arrays that a model reads: the mask variant chosen, the masks applied.

Shapes: B rows, S tokens of a row, P masked positions of a row, R rows of a chunk, K mask variants of a row.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

_FIELDS_OF_ROW = ("input_ids", "lengths", "sequence_ids")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedRows:
    """Rows with one of their mask variants applied."""

    input_ids: np.ndarray
    """[B, S] int64, the masked input."""
    original_ids: np.ndarray
    """[B, S] int64, the input before it was masked."""
    masked_positions: np.ndarray
    """[B, P] int64."""
    labels: np.ndarray
    """[B, P] int64, the original tokens at the masked positions."""
    label_mask: np.ndarray
    """[B, P] bool, False where a short row has fewer than P masked positions."""
    attention_mask: np.ndarray
    """[B, S] bool, True at real tokens."""
    document_ids: np.ndarray
    """[B, S] int16, which document of its row a token belongs to, from 0; padding counts to the last."""
    sequence_ids: np.ndarray
    """[B] uint64, which rows these are, unique in their shard folder."""


def pick_rows(chunk: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows of a chunk, without their masks.

    Args:
        chunk: the fields of a chunk; ``data_prep.contract.shards`` lists them.
        rows: [B] rows of the chunk.
    """
    picked = {name: chunk[name][rows] for name in _FIELDS_OF_ROW}
    picked["document_ids"] = _document_ids(chunk, rows)
    return picked


def apply_masks(fields: Mapping[str, np.ndarray]) -> MaskedRows:
    """Rows as ``pick_rows`` gives them and their masks as ``ShardSplit.masks`` does, with the masks applied."""
    original_ids = fields["input_ids"].astype(np.int64)
    positions = fields["masked_positions"].astype(np.int64)
    labels = np.take_along_axis(original_ids, positions, axis=1)
    in_use = np.arange(positions.shape[1]) < fields["num_masked"][:, None]
    input_ids = original_ids.copy()
    row, slot = np.nonzero(in_use)
    input_ids[row, positions[row, slot]] = fields["replacement_ids"].astype(np.int64)[row, slot]
    lengths = fields["lengths"].astype(np.int64)
    return MaskedRows(
        input_ids=input_ids,
        original_ids=original_ids,
        masked_positions=positions,
        labels=labels,
        label_mask=in_use,
        attention_mask=np.arange(original_ids.shape[1]) < lengths[:, None],
        document_ids=fields["document_ids"],
        sequence_ids=fields["sequence_ids"],
    )


def _document_ids(chunk: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[B, S] int16 of the given rows of a chunk: 0 up to the first boundary, then 1, and so on."""
    offsets = chunk["boundary_offsets"].astype(np.int64)
    begins = np.zeros((len(rows), chunk["input_ids"].shape[1]), dtype=np.int16)
    for index, row in enumerate(rows):
        begins[index, chunk["boundary_positions"][offsets[row] : offsets[row + 1]]] = 1
    return begins.cumsum(axis=1, dtype=np.int16)

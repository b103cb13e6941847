"""Rows of opened shards as batches of tensors. Which rows they are says ``order``."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.config import TrainingConfig
from pipeline.data.mask_subsets import MaskSubsets
from pipeline.data.mixture import MixedSplit, Mixture
from pipeline.data.order import ORDER_VERSION, interleaved, variants_of_epochs
from pipeline.data.row_schedule import RowSchedule
from pipeline.data.rows import apply_masks, pick_rows
from pipeline.model.arithmetic import RowShape

_VALIDATION_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one micro-batch: B rows of S tokens, with P masked positions per row."""

    input_ids: torch.Tensor
    """[B, S] int64, the masked input."""
    masked_positions: torch.Tensor
    """[B, P] int64."""
    labels: torch.Tensor
    """[B, P] int64, the original tokens at the masked positions."""
    label_mask: torch.Tensor
    """[B, P] bool, False where a short row has fewer than P masked tokens."""
    key_mask: torch.Tensor | None
    """[B, 1, 1, S] bool, True at real tokens; None if no row has padding."""
    document_ids: torch.Tensor
    """[B, S] int16, which document of its row a token belongs to, from 0; padding counts to the last."""
    sequence_ids: np.ndarray
    """[B] uint64, which rows these are, unique in their shard folder."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that a device needs, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``; to CUDA through pinned memory, so that the host does not wait."""
        pinned = {name: t.pin_memory() if device.type == "cuda" else t for name, t in self.tensors.items()}
        return dataclasses.replace(self, **{name: t.to(device, non_blocking=True) for name, t in pinned.items()})


class TrainingData:
    """The rows that one process computes, step by step.

    Args:
        shards: opened shard folders.
        training: rows of a step and of a forward pass, and how many of their masks are used.
        seed: data seed.
        data_rank, data_parallel_size: which share of each batch this process reads.
        order_version: of the order of the rows, as ``run.json`` has it.
        first_row: place in that order at which the run begins.

    Raises:
        UserError: the shards hold fewer masks than a step would use.
    """

    def __init__(
        self,
        shards: Mixture,
        training: TrainingConfig,
        *,
        seed: int,
        data_rank: int = 0,
        data_parallel_size: int = 1,
        order_version: int = ORDER_VERSION,
        first_row: int = 0,
    ) -> None:
        self._first_row = first_row
        self._split = shards.split("train")
        self._num_variants = np.array(shards.num_variants)
        self._order = shards.order(seed, training.global_batch_size, order_version)
        self._schedule = RowSchedule(training, shards.row_shape)
        self._subsets = MaskSubsets(shards.folders, seed)
        self._micro_batch_size = training.micro_batch_size
        self._data_rank = data_rank
        self._data_parallel_size = data_parallel_size

    def step(self, step: int) -> list[Batch]:
        """This process's micro-batches of the step that follows ``step`` steps."""
        positions = self._order.positions_of_process(
            self._first_row + self._schedule.rows_before(step),
            self._schedule.rows(step),
            data_rank=self._data_rank,
            data_parallel_size=self._data_parallel_size,
        )
        folders, epochs, chunks, rows = self._order.locate(positions)
        chunks += self._split.first_chunks[folders]
        variants = variants_of_epochs(epochs, self._num_variants[folders])
        masked_per_row = self._schedule.masked_per_row(step)
        return [
            make_batch(self._split, chunks[part], rows[part], variants[part], self._subsets, masked_per_row)
            for part in _slices(len(positions), self._micro_batch_size)
        ]


def validation_batches(
    shards: Mixture,
    *,
    max_rows: int,
    micro_batch_size: int,
    data_rank: int,
    data_parallel_size: int,
    masked_per_row: int | None = None,
) -> Iterator[Batch]:
    """This process's share of ``max_rows`` validation rows, always with variant 0.

    Every process gets as many batches as any other, all of one shape. Where ZeRO divides the weights, a
    forward pass needs all ranks, and a compiled one wants static shapes. Filler rows of the last batch
    have no active label.

    Of fewer ``masked_per_row`` than the shards hold every run has the same subsets, whatever its seeds.
    """
    split = shards.split("validation")
    subsets = MaskSubsets(shards.folders, _VALIDATION_SEED)
    starts = np.concatenate([[0], np.cumsum(split.chunk_rows)])
    chosen = shards.validation_rows(max_rows)
    batch_rows = micro_batch_size * data_parallel_size
    index = interleaved(
        0,
        -(-len(chosen) // batch_rows) * batch_rows,
        data_rank=data_rank,
        data_parallel_size=data_parallel_size,
    )
    real = index < len(chosen)
    flat = chosen[np.minimum(index, len(chosen) - 1)]
    chunks = np.searchsorted(starts, flat, side="right") - 1
    for part in _slices(len(flat), micro_batch_size):
        rows = flat[part] - starts[chunks[part]]
        batch = make_batch(split, chunks[part], rows, np.zeros_like(rows), subsets, masked_per_row)
        yield dataclasses.replace(batch, label_mask=batch.label_mask & torch.from_numpy(real[part])[:, None])


def make_batch(
    split: MixedSplit,
    chunks: np.ndarray,
    rows: np.ndarray,
    variants: np.ndarray,
    subsets: MaskSubsets | None = None,
    masked_per_row: int | None = None,
) -> Batch:
    """Read rows (chunk index, row inside it, mask variant; each [B]) and lay them out as tensors.

    With ``subsets`` they have ``masked_per_row`` slots, where that is less than the shards have.
    """
    fields: dict[str, np.ndarray] = {}
    for chunk in np.unique(chunks):
        of_chunk = np.flatnonzero(chunks == chunk)
        picked = pick_rows(split.chunk(int(chunk)), rows[of_chunk])
        for name, values in picked.items():
            if name not in fields:
                fields[name] = np.empty((len(chunks), *values.shape[1:]), values.dtype)
            fields[name][of_chunk] = values
    fields |= split.masks(chunks, rows, variants)
    if subsets is not None and masked_per_row not in (None, fields["masked_positions"].shape[1]):
        fields |= subsets.take(fields, split.folders_of(chunks), variants, masked_per_row)
    masked = apply_masks(fields)
    return Batch(
        input_ids=torch.from_numpy(masked.input_ids),
        masked_positions=torch.from_numpy(masked.masked_positions),
        labels=torch.from_numpy(masked.labels),
        label_mask=torch.from_numpy(masked.label_mask),
        key_mask=None if masked.attention_mask.all() else _key_mask(masked.attention_mask),
        document_ids=torch.from_numpy(masked.document_ids),
        sequence_ids=masked.sequence_ids,
    )


def example_batch(shape: RowShape, num_rows: int, *, padded: bool) -> Batch:
    """A batch that holds no text, laid out as those of ``make_batch`` are; with ``padded`` rows that end early."""
    ids = np.zeros((num_rows, shape.seq_length), np.int64)
    positions = np.tile(np.arange(shape.masked_per_row), (num_rows, 1))
    seen = np.ones(ids.shape, bool)
    seen[:, -1] = False
    return Batch(
        input_ids=torch.from_numpy(ids),
        masked_positions=torch.from_numpy(positions),
        labels=torch.zeros(positions.shape, dtype=torch.int64),
        label_mask=torch.ones(positions.shape, dtype=torch.bool),
        key_mask=_key_mask(seen) if padded else None,
        document_ids=torch.zeros(ids.shape, dtype=torch.int16),
        sequence_ids=np.zeros(num_rows, np.uint64),
    )


def _key_mask(attention_mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(attention_mask)[:, None, None, :]


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

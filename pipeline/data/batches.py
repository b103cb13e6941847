"""Shards and a position -> batches. Owns the order of the rows.

The order is a pure function of (root hash of the shards, data seed, epoch); the position is one
number, the rows consumed so far. So a resume computes where it is and replays nothing, and
neither the number of processes nor of threads that read can change which row comes when.

`mixture.py` deals the positions to the shard folders. How one epoch of a folder's R rows is laid out:

1. the chunks are permuted and, in that order, joined into one line of R rows;
2. the line is cut into lanes of equal length (the first few one row longer): ``MAX_LANES``, or
   fewer where a lane would be shorter than a window;
3. inside a lane, rows are permuted within windows of ``WINDOW_ROWS``;
4. row j of the epoch is the next row of lane ``j mod lanes``.

Every row comes exactly once an epoch, and any position is found without visiting the ones
before it. A process takes every ``data_parallel_size``-th row of a batch, which is a subset of
the lanes whenever that size divides their number: then no two processes read the same chunk (but
for lane ends); in a mixture they may. Rows were already shuffled globally when the shards were made.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from pipeline.data.mixture import Deal, MixedSplit, Mixture, generator

MAX_LANES = 64
WINDOW_ROWS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one micro-batch; B rows, T positions, P masked positions a row."""

    input_ids: torch.Tensor
    """[B, T] int64, the masked input."""
    masked_positions: torch.Tensor
    """[B, P] int64."""
    labels: torch.Tensor
    """[B, P] int64, the original tokens at the masked positions."""
    label_mask: torch.Tensor
    """[B, P] bool, False where a short row has fewer than P masked tokens."""
    key_mask: torch.Tensor | None
    """[B, 1, 1, T] bool, True at real tokens; None if no row has padding."""
    document_ids: torch.Tensor
    """[B, T] int16, which document of its row a token belongs to, from 0; padding counts to the last."""
    sequence_ids: np.ndarray
    """[B] uint64, which rows these are, unique in their shard folder."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that a device needs, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``; to CUDA through pinned memory, so that the host need not wait."""
        pinned = {name: t.pin_memory() if device.type == "cuda" else t for name, t in self.tensors.items()}
        return dataclasses.replace(self, **{name: t.to(device, non_blocking=True) for name, t in pinned.items()})


class RowOrder:
    """Which row stands at a position of a folder's endless row stream.

    Args:
        chunk_rows: rows of every chunk, in manifest order.
        root_hash: the shard folder's root hash.
        seed: data seed.
    """

    def __init__(self, chunk_rows: np.ndarray, root_hash: str, seed: int) -> None:
        self.chunk_rows = np.asarray(chunk_rows, dtype=np.int64)
        self.num_rows = int(self.chunk_rows.sum())
        # A power of two, so that the usual data-parallel sizes divide it.
        self.lanes = 1 << (min(MAX_LANES, max(1, self.num_rows // WINDOW_ROWS)).bit_length() - 1)
        self._key = (root_hash, seed)
        self._chunk_line = functools.lru_cache(maxsize=4)(self._shuffle_chunks)
        self._window = functools.lru_cache(maxsize=4 * MAX_LANES)(self._shuffle_window)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions [n] -> (epoch, chunk index, row inside the chunk), each [n] int64."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, in_epoch = np.divmod(positions, self.num_rows)
        chunks, rows = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chunks[here], rows[here] = self._locate_in_epoch(int(epoch), in_epoch[here])
        return epochs, chunks, rows

    def _locate_in_epoch(self, epoch: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, starts = self._chunk_line(epoch)
        lane, step = index % self.lanes, index // self.lanes
        lane_starts = _lane_starts(self.num_rows, self.lanes)
        line = np.empty_like(index)
        for key in np.unique(np.stack([lane, step // WINDOW_ROWS]), axis=1).T:
            here = (lane == key[0]) & (step // WINDOW_ROWS == key[1])
            first = int(key[1]) * WINDOW_ROWS
            lane_rows = int(lane_starts[key[0] + 1] - lane_starts[key[0]])
            window = self._window(epoch, int(key[0]), int(key[1]), min(WINDOW_ROWS, lane_rows - first))
            line[here] = lane_starts[key[0]] + first + window[step[here] - first]
        place = np.searchsorted(starts, line, side="right") - 1
        return order[place], line - starts[place]

    def _shuffle_chunks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(*self._key, "chunks", epoch).permutation(len(self.chunk_rows))
        return order, np.concatenate([[0], np.cumsum(self.chunk_rows[order])[:-1]])

    def _shuffle_window(self, epoch: int, lane: int, window: int, size: int) -> np.ndarray:
        # Small integers: every folder of a mixture keeps its windows.
        return generator(*self._key, "window", epoch, lane, window).permutation(size).astype(np.uint16)


class MixedOrder:
    """Which row of which folder stands at a position of the endless row stream of a mixture.

    Args:
        deal: of the positions to the folders.
        orders: of each folder's own stream.
    """

    def __init__(self, deal: Deal, orders: Sequence[RowOrder]) -> None:
        self._deal, self._orders = deal, orders

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Positions [n] -> (folder, its epoch, its chunk, row inside the chunk), each [n] int64."""
        folders, places = self._deal.locate(positions)
        epochs, chunks, rows = (np.empty_like(places) for _ in range(3))
        for folder in np.unique(folders):
            here = folders == folder
            epochs[here], chunks[here], rows[here] = self._orders[folder].locate(places[here])
        return folders, epochs, chunks, rows


def _lane_starts(num_rows: int, lanes: int) -> np.ndarray:
    """[lanes + 1] first row of each lane; a lane holds ceil or floor of num_rows / lanes."""
    short, longer = divmod(num_rows, lanes)
    index = np.arange(lanes + 1)
    return index * short + np.minimum(index, longer)


class TrainingData:
    """The rows that one process computes, step by step.

    Args:
        shards: opened shard folders.
        seed: data seed.
        global_batch_size: rows a step over all processes.
        micro_batch_size: rows of one forward pass.
        data_rank, data_parallel_size: which share of the batch is ours.
    """

    def __init__(
        self,
        shards: Mixture,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        data_rank: int = 0,
        data_parallel_size: int = 1,
    ) -> None:
        self._split = shards.split("train")
        self._num_variants = np.array(shards.num_variants)
        self._order = MixedOrder(
            shards.deal(seed),
            [
                RowOrder(part.chunk_rows, folder.root_hash, seed)
                for part, folder in zip(self._split.parts, shards.folders, strict=True)
            ],
        )
        self.global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._data_rank = data_rank
        self._data_parallel_size = data_parallel_size

    def step(self, rows_consumed: int) -> list[Batch]:
        """This process's micro-batches of the step that starts at ``rows_consumed``."""
        stop = rows_consumed + self.global_batch_size
        positions = np.arange(rows_consumed + self._data_rank, stop, self._data_parallel_size)
        folders, epochs, chunks, rows = self._order.locate(positions)
        chunks += self._split.first_chunks[folders]
        variants = epochs % self._num_variants[folders]
        return [
            make_batch(self._split, chunks[part], rows[part], variants[part])
            for part in _slices(len(positions), self._micro_batch_size)
        ]


Loaded: TypeAlias = tuple[list[Batch], torch.cuda.Event | None]  # batches, and when their copies are done


def validation_batches(
    shards: Mixture, *, max_rows: int, micro_batch_size: int, data_rank: int, data_parallel_size: int
) -> Iterator[Batch]:
    """This process's share of ``max_rows`` validation rows, always with variant 0.

    Every process gets as many batches as any other, all of one shape: where ZeRO splits the weights a
    forward pass is a joint act, and a compiled one wants static shapes. What fills the last batch has
    no label that counts.
    """
    split = shards.split("validation")
    starts = np.concatenate([[0], np.cumsum(split.chunk_rows)])
    chosen = shards.validation_rows(max_rows)
    batch_rows = micro_batch_size * data_parallel_size
    index = np.arange(data_rank, -(-len(chosen) // batch_rows) * batch_rows, data_parallel_size)
    real = index < len(chosen)
    flat = chosen[np.minimum(index, len(chosen) - 1)]
    chunks = np.searchsorted(starts, flat, side="right") - 1
    for part in _slices(len(flat), micro_batch_size):
        rows = flat[part] - starts[chunks[part]]
        batch = make_batch(split, chunks[part], rows, np.zeros_like(rows))
        yield dataclasses.replace(batch, label_mask=batch.label_mask & torch.from_numpy(real[part])[:, None])


def make_batch(split: MixedSplit, chunks: np.ndarray, rows: np.ndarray, variants: np.ndarray) -> Batch:
    """Read rows (chunk index, row inside it, mask variant; each [B]) and lay them out as tensors."""
    by_variant = ("masked_positions", "replacement_ids", "num_masked")
    names = ("input_ids", "lengths", "sequence_ids", *by_variant)
    fields: dict[str, np.ndarray] = {}
    for chunk in np.unique(chunks):
        here = np.flatnonzero(chunks == chunk)
        arrays = split.chunk(int(chunk))
        # [n, k, ...] fields take the row's variant, the others the row.
        picked = {
            name: arrays[name][rows[here], variants[here]] if name in by_variant else arrays[name][rows[here]]
            for name in names
        }
        picked["document_ids"] = _document_ids(arrays, rows[here])
        for name, values in picked.items():
            if name not in fields:
                fields[name] = np.empty((len(chunks), *values.shape[1:]), values.dtype)
            fields[name][here] = values
    original = fields["input_ids"].astype(np.int64)
    positions = fields["masked_positions"].astype(np.int64)
    labels = np.take_along_axis(original, positions, axis=1)
    real = np.arange(positions.shape[1]) < fields["num_masked"][:, None]
    masked_input = original.copy()
    here, slot = np.nonzero(real)
    masked_input[here, positions[here, slot]] = fields["replacement_ids"].astype(np.int64)[here, slot]
    lengths = fields["lengths"].astype(np.int64)
    key_mask = None
    if (lengths < original.shape[1]).any():
        key_mask = torch.from_numpy(np.arange(original.shape[1]) < lengths[:, None])[:, None, None, :]
    return Batch(
        input_ids=torch.from_numpy(masked_input),
        masked_positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        label_mask=torch.from_numpy(real),
        key_mask=key_mask,
        document_ids=torch.from_numpy(fields["document_ids"]),
        sequence_ids=fields["sequence_ids"],
    )


def _document_ids(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """[n, L] int16 of the given rows of a chunk: 0 up to the first boundary, then 1, and so on."""
    offsets = arrays["boundary_offsets"].astype(np.int64)
    begins = np.zeros((len(rows), arrays["input_ids"].shape[1]), dtype=np.int16)
    for index, row in enumerate(rows):
        begins[index, arrays["boundary_positions"][offsets[row] : offsets[row + 1]]] = 1
    return begins.cumsum(axis=1, dtype=np.int16)


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))

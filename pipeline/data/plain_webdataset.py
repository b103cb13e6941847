"""A shard folder as an ordinary WebDataset pipeline of rows, for other people's trainers."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
from webdataset.compat import FluidInterface
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_node, split_by_worker

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import chunk_key
from data_prep.contract.shard_split import ShardSplit
from data_prep.contract.shards import open_shards
from pipeline.data.order import generator, variants_of_epochs
from pipeline.data.rows import apply_masks, pick_rows

PlainRow = TypedDict(
    "PlainRow",
    {
        "__key__": str,
        "input_ids": np.ndarray,
        "original_ids": np.ndarray,
        "masked_positions": np.ndarray,
        "labels": np.ndarray,
        "label_mask": np.ndarray,
        "attention_mask": np.ndarray,
        "document_ids": np.ndarray,
        "sequence_id": np.ndarray,
    },
)
"""One row of the pipeline; ``as_webdataset`` lists its fields."""


class RowPipeline(DataPipeline, FluidInterface):  # pyright: ignore[reportIncompatibleMethodOverride] as webdataset.WebDataset
    """A WebDataset pipeline with the usual methods: ``map``, ``batched``, ``shuffle``, ``repeat`` and so on."""


def as_webdataset(
    folder: str | Path, split: str = "train", *, epoch: int = 0, shuffle_seed: int | None = None
) -> RowPipeline:
    """The rows of a shard folder as a WebDataset pipeline of dictionaries; one pass over it is one epoch.

    Each row has these fields. S is ``seq_length`` and P is ``masked_per_row`` of the folder's manifest::

        __key__           str             shard, chunk and row: "train-00000-0003-000017"
        input_ids         [S]  int64      the masked input
        original_ids      [S]  int64      the input before it was masked
        masked_positions  [P]  int64      sorted; the slots that are not in use hold 0
        labels            [P]  int64      the original tokens at the masked positions
        label_mask        [P]  bool       True at the slots in use: only these count in a loss
        attention_mask    [S]  bool       True at real tokens, False at padding
        document_ids      [S]  int16      which document of its row a token belongs to, from 0
        sequence_id       []   uint64     identifies the row in its folder

    The order is that of the files, which preparation has already shuffled globally. With ``shuffle_seed`` the shards
    are permuted, and so are the rows inside each chunk. That order is a pure function of (the folder's root hash,
    ``shuffle_seed``, ``epoch``). It is not the order of ``narrowbert train``. For more mixing append
    ``.shuffle(rows)``.

    The pipeline deals whole shards, first to the ranks of ``torch.distributed``, then to the workers of a
    ``DataLoader``. Ranks may therefore get different numbers of rows.

    Args:
        folder: a shard folder, or its URL; a chunk behind a URL is fetched into the cache when it is first read.
        split: ``train`` or ``validation``.
        epoch: training rows take mask variant ``epoch`` mod the number of variants. So build one pipeline per epoch.
            Validation rows always take variant 0, as in ``narrowbert train``.
        shuffle_seed: None keeps the order of the files.

    Raises:
        UserError: the folder cannot be opened, has no rows in such a split, or ``epoch`` is negative. While reading: a
            shard cannot be fetched, or a chunk is damaged.

    Example:
        >>> import narrowbert
        >>> row = next(iter(narrowbert.as_webdataset("shards/mine", "train", epoch=0)))
        >>> row["labels"].shape == row["masked_positions"].shape
        True
    """
    if epoch < 0:
        raise UserError(f"epoch is {epoch}: give 0 or a positive number")
    opened = open_shards(folder)
    source = _Source(
        split=opened.split_with_rows(split),
        # Validation rows always take variant 0, as in training.
        variant=variants_of_epochs(epoch, opened.num_variants) if split == "train" else 0,
        shuffle_key=None if shuffle_seed is None else (opened.root_hash, shuffle_seed, "plain", epoch),
    )
    return RowPipeline(source.shard_numbers, split_by_node, split_by_worker, source.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """The first and the last stage of the pipeline: which shards, and their rows."""

    split: ShardSplit
    variant: int
    """The mask variant of all rows."""
    shuffle_key: tuple[str | int, ...] | None
    """What the shuffled order follows from; None keeps the order of the files."""

    def shard_numbers(self) -> Iterator[int]:
        """The shards, in the order in which they are read."""
        yield from self._order(self.split.index.num_shards, "shards").tolist()

    def rows(self, shard_numbers: Iterable[int]) -> Iterator[PlainRow]:
        """The rows of these shards."""
        index = self.split.index
        for shard_number in shard_numbers:
            for number, chunk in enumerate(index.chunks(shard_number)):
                yield from self._rows_of_chunk(chunk_key(index.name(shard_number), number), chunk)

    def _rows_of_chunk(self, key: str, chunk: int) -> Iterator[PlainRow]:
        order = self._order(int(self.split.chunk_rows[chunk]), key)
        masks = self.split.masks(np.full(len(order), chunk), order, np.full(len(order), self.variant))
        masked = apply_masks({**pick_rows(self.split.chunk(chunk), order), **masks})
        for index, row in enumerate(order):
            yield {
                "__key__": f"{key}-{row:06d}",
                "input_ids": masked.input_ids[index],
                "original_ids": masked.original_ids[index],
                "masked_positions": masked.masked_positions[index],
                "labels": masked.labels[index],
                "label_mask": masked.label_mask[index],
                "attention_mask": masked.attention_mask[index],
                "document_ids": masked.document_ids[index],
                "sequence_id": masked.sequence_ids[index, ...],
            }

    def _order(self, count: int, what: str) -> np.ndarray:
        if self.shuffle_key is None:
            return np.arange(count)
        return generator(*self.shuffle_key, what).permutation(count)

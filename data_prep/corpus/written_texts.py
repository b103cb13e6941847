"""Documents back out as text: parquet files, which other tools read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.contract.shard_format import SPLITS

COLUMNS = pa.schema([("id", pa.string()), ("split", pa.string()), ("text", pa.string())])
"""Of the files: the id that rejects name a document by, train or validation, and the text, cleaned."""


class TextFile:
    """A parquet file that is written in pieces, each a row group; memory does not grow with it."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, COLUMNS, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, ids: list[str], validation: Sequence[int], texts: list[str]) -> None:
        """Append documents; ``validation`` is 1 for those of that split.

        Halves of surrogate pairs, which parquet cannot hold, become question marks.
        """
        if ids:
            plain = [text.encode("utf-8", "replace").decode() for text in texts]
            splits = [SPLITS[number] for number in validation]
            self._writer.write_table(pa.table({"id": ids, "split": splits, "text": plain}, schema=COLUMNS))


def write_kept(source: Path, target: Path, keep: np.ndarray, held_out: np.ndarray) -> None:
    """Write the documents of a file that are to be kept into another one, each with its split.

    Args:
        keep: [documents] bool.
        held_out: [documents] bool, those of the validation split.
    """
    splits = np.array(SPLITS)[held_out.astype(np.int64)]
    first = 0
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, COLUMNS, compression="zstd") as writer:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            here = slice(first, first + group.num_rows)
            named = group.set_column(1, COLUMNS.field("split"), pa.array(splits[here], pa.string()))
            kept = named.filter(pa.array(keep[here]))
            first = here.stop
            if kept.num_rows:
                writer.write_table(kept)

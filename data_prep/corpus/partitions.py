"""Corpus files cut into partitions of about the same size, from what was found in them alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.corpus.builtin_corpus import BUILTIN
from data_prep.corpus.documents import CorpusFile, Partition
from data_prep.corpus.surveys import LINE_STEP

MIN_PARTITION_BYTES = 4 << 20

_MAX_PARTITION_BYTES = 64 << 20

_WANTED_PARTITIONS = 2_048


def partition_bytes(total_bytes: int) -> int:
    """Text that one partition should hold: a 2,048th of the corpus, but 4 to 64 MB."""
    return min(max(total_bytes // _WANTED_PARTITIONS, MIN_PARTITION_BYTES), _MAX_PARTITION_BYTES)


def plan_partitions(files: Sequence[CorpusFile], surveys: Sequence[Mapping[str, Any]]) -> list[Partition]:
    """Partitions of about the same size, each of one file; every file has at least one."""
    wanted = partition_bytes(sum(found["bytes"] for found in surveys))
    partitions: list[Partition] = []
    for number, (file, found) in enumerate(zip(files, surveys, strict=True)):
        units = found["units"]
        lines = {0: 0}
        if file.kind in ("parquet", "arrow", "mds", BUILTIN) or units <= 1:
            # The built-in corpus takes seconds to collect, in each process that reads a part of it: so there is one.
            count = 1 if file.kind == BUILTIN else max(1, min(units, found["bytes"] // wanted))
            cuts = [units * i // count for i in range(count)]
        else:
            step = found.get("line_step", LINE_STEP)
            lines |= {step * (i + 1): count for i, count in enumerate(found.get("lines", ()))}
            size = step * max(1, round(wanted / step))
            cuts = list(range(0, max(units, 1), size))
        for begin, end in zip(cuts, [*cuts[1:], units], strict=True):
            partitions.append(
                Partition(index=len(partitions), file=number, begin=begin, end=end, lines_before=lines.get(begin))
            )
    return partitions

"""What a preparation of any size costs, stage by stage: unit costs measured here, counted by the code's own rules.

    python -m benchmarks.preparation_model --tokenizer tokenizer.json --terabytes 10

Prepares a corpus of some hundred megabytes in partitions of their real size, in one process, for the cost of a byte, a
document and a row; then one of many tiny partitions, for the cost of opening a file of another task. The order stage
is really run at the size in question, since it reads nothing. Everything else is multiplied. Prints tasks, core-hours,
file opens and bytes of each stage, the time on so many cores, and what limits it.
"""

import argparse
import dataclasses
import math
import resource
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.preparation_scale import StageTimes, write_corpus
from benchmarks.results import record
from data_prep.config import CorpusConfig, MaskConfig, PrepConfig
from data_prep.contract.shard_format import Geometry
from data_prep.contract.shards import open_shards
from data_prep.contract.tokenizer import load_tokenizer, vocabulary_size
from data_prep.corpus import partitions
from data_prep.filters.exact_duplicates import KEY
from data_prep.stages.build import build_shards
from data_prep.stages.order import MIN_TASKS, shard_starts
from data_prep.stages.pack import row_dtype
from data_prep.stages.records import MAX_RANGES, MIN_RANGE_BYTES, range_tasks

RECORDS = 5
"""Files of a map task that others open: tokens, documents, keys, rejects, record."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units:
    """Processor seconds."""

    survey_byte: float
    map_byte: float
    key: float
    row_packed: float
    row_reduced: float
    pair: float
    """Reading one range of one file of another task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the table."""

    name: str
    tasks: int
    """Pieces of work that may run side by side; the plan is one job, so at most as many as a node has cores."""
    core_s: float
    opens: float
    read: float
    written: float


def prepared(work: Path, config: PrepConfig) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each stage, and the counts that they are shared out over."""
    times = StageTimes()
    build_shards(config, times)
    times.end()
    manifest = open_shards(config.output).manifest
    rows = sum(split["rows"] for split in manifest["splits"].values())
    documents = manifest["statistics"]["read"]
    size = sum(path.stat().st_size for path in (work / "corpus").iterdir())
    return times.seconds, {"rows": rows, "documents": documents, "bytes": size}


def measure(work: Path, options: argparse.Namespace) -> Units:
    """The unit costs on this machine."""
    write_corpus(work / "corpus", options.megabytes // 4, 4_200_000 // 380, copies=0.1)
    config = PrepConfig(
        output=str(work / "shards"),
        tokenizer=options.tokenizer,
        corpus=CorpusConfig(paths=(str(work / "corpus"),)),
        mask=MaskConfig(variants=options.variants),
        seq_length=options.seq_length,
        num_workers=1,
    )
    seconds, counts = prepared(work, config)
    shutil.rmtree(work)
    many, few = (_tiny(work, options, tasks) for tasks in (2_000, 500))
    pairs = (2_000 - 500) * 16  # reduce tasks of both: the least number there is
    return Units(
        survey_byte=seconds["read"] / counts["bytes"],
        map_byte=seconds["map"] / counts["bytes"],
        key=seconds["duplicates"] / counts["documents"],
        row_packed=seconds["pack"] / counts["rows"],
        row_reduced=seconds["reduce"] / counts["rows"],
        pair=(many["reduce"] - few["reduce"]) / pairs,
    )


def _tiny(work: Path, options: argparse.Namespace, tasks: int) -> dict[str, float]:
    write_corpus(work / "corpus", tasks, 1, copies=0.0)
    config = PrepConfig(
        output=str(work / "shards"),
        tokenizer=options.tokenizer,
        corpus=CorpusConfig(paths=(str(work / "corpus"),)),
        mask=MaskConfig(variants=1),
        seq_length=64,
        rows_per_shard=32,
        chunk_rows=32,
        num_workers=1,
    )
    smallest, partitions.MIN_PARTITION_BYTES = partitions.MIN_PARTITION_BYTES, 1
    wanted, partitions._WANTED_PARTITIONS = partitions._WANTED_PARTITIONS, 1 << 40
    try:
        return prepared(work, config)[0]
    finally:
        partitions.MIN_PARTITION_BYTES, partitions._WANTED_PARTITIONS = smallest, wanted
        shutil.rmtree(work)


def stages_of(options: argparse.Namespace, units: Units) -> list[Stage]:
    """The stages of a preparation of that size."""
    size = int(options.terabytes * 1e12)
    tasks = math.ceil(size / partitions.partition_bytes(size))
    documents, tokens = size // options.document_bytes, int(size / options.token_bytes)
    rows = tokens // (options.seq_length - 2)
    geometry = Geometry(
        seq_length=options.seq_length,
        masked_per_row=round(0.15 * options.seq_length),
        num_variants=options.variants,
        vocab_size=vocabulary_size(load_tokenizer(options.tokenizer)),
    )
    packed = row_dtype(geometry).itemsize
    ranges = range_tasks(documents, KEY.itemsize, tasks)
    buckets = min(MAX_RANGES, max(MIN_TASKS, rows * packed // (tasks * MIN_RANGE_BYTES)))
    shard = rows * (packed + options.variants * (2 * 2 * geometry.masked_per_row + 2))
    token_bytes = tokens * geometry.token_dtype.itemsize
    order_s = order(tasks, rows)
    return [
        Stage(
            name="plan",
            tasks=options.node_cores,
            core_s=size * units.survey_byte,
            opens=options.files,
            read=size,
            written=0,
        ),
        Stage(
            name="map",
            tasks=tasks,
            core_s=size * units.map_byte,
            opens=tasks * (RECORDS + 1),
            read=size,
            written=token_bytes + documents * 90,
        ),
        Stage(
            name="duplicates",
            tasks=ranges,
            core_s=documents * units.key + ranges * tasks * units.pair,
            opens=2 * ranges * tasks,
            read=documents * KEY.itemsize,
            written=0,
        ),
        Stage(
            name="pack",
            tasks=tasks,
            core_s=rows * units.row_packed + ranges * tasks * units.pair,
            opens=tasks * (RECORDS + 4 + ranges),
            read=token_bytes + documents * 90,
            written=rows * packed,
        ),
        Stage(name="order", tasks=1, core_s=order_s, opens=2, read=0, written=rows / 65_536 * 8),
        Stage(
            name="reduce",
            tasks=buckets,
            core_s=rows * units.row_reduced + buckets * tasks * units.pair,
            opens=2 * buckets * tasks + 4 * rows / 65_536,
            read=2 * rows * packed,
            written=rows * packed + shard,
        ),
        Stage(
            name="finish", tasks=1, core_s=tasks * 3e-4, opens=2 * tasks + buckets, read=0, written=rows / 65_536 * 150
        ),
    ]


def order(tasks: int, rows: int) -> float:
    """Processor seconds of the order stage, really run for so many rows."""
    began = time.process_time()
    counts = np.full(tasks, rows // tasks).tolist()
    shard_starts(0, [0] * tasks, counts, 65_536)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--terabytes", type=float, default=10.0)
    parser.add_argument("--document_bytes", type=int, default=4_000)
    parser.add_argument("--token_bytes", type=float, default=4.3, help="of English text that a token stands for")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seq_length", type=int, default=512)
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--cores", type=int, default=1_024)
    parser.add_argument("--node_cores", type=int, default=16, help="which the plan, one job, has")
    parser.add_argument("--megabytes", type=int, default=100, help="of the corpus that is measured")
    parser.add_argument("--work", type=Path, default=Path("model.work"), help="a folder to be made, and removed")
    parser.add_argument("--record", action="store_true", help="add the table to results/preparation.jsonl")
    options = parser.parse_args()
    units = measure(options.work, options)
    print(units)
    rows = []
    for stage in stages_of(options, units):
        hours = stage.core_s / 3600
        rows.append({
            "stage": stage.name,
            "tasks": f"{stage.tasks:,}",
            "core-hours": f"{hours:,.1f}" if hours >= 0.05 else "below 0.1",
            f"on {options.cores:,} cores": f"{stage.core_s / min(stage.tasks, options.cores) / 60:,.1f} min",
            "file opens": f"{stage.opens:.1e}",
            "read": f"{stage.read / 1e12:,.2f} TB",
            "written": f"{stage.written / 1e12:,.2f} TB",
        })  # fmt: skip
        print(rows[-1])
    print(f"largest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB")
    if options.record:
        record("preparation", "model", rows)


if __name__ == "__main__":
    main()

"""What each stage of a preparation costs as the corpus grows, by its number of tasks, documents or shards.

    python benchmarks/preparation_scale.py --tokenizer tokenizer.json --tasks 100 1000 10000

A small partition stands for a large one: every file of the corpus is a map task of its own, and a shard has 32 rows.
So many tasks fit on a disk, and what a stage does for a task, a file, a document and a shard is all there is to see.
Prints the processor seconds of each stage, one process, and the slope of their logarithm against that of the size
from the first size to the last: 1 is linear, 2 quadratic. The largest resident memory is that after the last size.
"""

import argparse
import json
import math
import random
import resource
import shutil
import time
from pathlib import Path

from benchmarks.results import record
from data_prep.config import CorpusConfig, DuplicatesConfig, MaskConfig, PrepConfig
from data_prep.corpus import partitions
from data_prep.stages.build import build_shards

ROWS_PER_SHARD = 32
WORDS = 120
VOCABULARY = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]


class StageTimes:
    """Takes the progress of a preparation: processor seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage, self._began = "", 0.0

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:  # noqa: ARG002
        """A stage begins."""
        self.end()
        self._stage, self._began = stage, time.process_time()

    def advance(self, count: int, documents: int = 0) -> None:
        """Part of a stage is done."""

    def note(self, message: str) -> None:
        """Something the user should know."""
        print(message)

    def end(self) -> None:
        """The last stage has ended; what follows it counts to it."""
        if self._stage:
            self.seconds[self._stage] = time.process_time() - self._began


def write_templates(folder: Path, files: int, documents: int) -> None:
    """Files of so many documents of one template, in which the last two of 40 words are the document's own."""
    draw = random.Random(1)
    folder.mkdir(parents=True)
    template = " ".join(draw.choices(VOCABULARY, k=38))
    for number in range(files):
        own = range(number * documents, (number + 1) * documents)
        # Both words are in no other document, however many there are: all sizes are equally alike.
        lines = [json.dumps({"text": f"{template} a{one:08x} b{one:08x}"}) + "\n" for one in own]
        (folder / f"{number:06d}.jsonl").write_text("".join(lines))


def write_corpus(folder: Path, files: int, documents: int, copies: float) -> None:
    """Files of so many documents of 120 words, a share of them copies of earlier ones."""
    draw = random.Random(1)
    folder.mkdir(parents=True)
    kept: list[str] = []
    for number in range(files):
        lines = []
        for _ in range(documents):
            if kept and draw.random() < copies:
                text = draw.choice(kept)
            else:
                text = " ".join(draw.choices(VOCABULARY, k=WORDS))
                kept.append(text)
            lines.append(json.dumps({"text": text}) + "\n")
        (folder / f"{number:06d}.jsonl").write_text("".join(lines))


def measure(work: Path, tokenizer: str, tasks: int, options: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of each stage for a corpus of so many tasks."""
    if options.template:
        write_templates(work / "corpus", tasks, options.documents)
        write_corpus(work / "corpus/others", 20, 40, 0.0)  # so that both splits have rows
    else:
        write_corpus(work / "corpus", tasks, options.documents, options.copies)
    config = PrepConfig(
        output=str(work / "shards"),
        tokenizer=tokenizer,
        corpus=CorpusConfig(paths=(str(work / "corpus"),)),
        duplicates=DuplicatesConfig(near_threshold=options.near_threshold),
        mask=MaskConfig(variants=1),
        seq_length=64,
        rows_per_shard=ROWS_PER_SHARD,
        chunk_rows=ROWS_PER_SHARD,
        num_workers=1,
    )
    times = StageTimes()
    build_shards(config, times)
    times.end()
    shards = len(list((work / "shards").glob("*.tar")))
    shutil.rmtree(work)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    shown = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in times.seconds.items())
    print(f"{tasks} tasks, {shards} shards: {shown} s; {memory:,.0f} MB", flush=True)
    return {**times.seconds, "shards": shards, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json")
    parser.add_argument("--tasks", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--documents", type=int, default=4, help="of each task")
    parser.add_argument("--copies", type=float, default=0.3, help="share of the documents that are copies")
    parser.add_argument("--near_threshold", type=float, default=None)
    parser.add_argument("--template", action="store_true", help="all documents are of one template, without copies")
    parser.add_argument("--work", type=Path, default=Path("scale.work"), help="a folder to be made, and removed")
    parser.add_argument("--record", action="store_true", help="add the table to results/preparation.jsonl")
    options = parser.parse_args()
    partitions.MIN_PARTITION_BYTES = 1
    partitions._WANTED_PARTITIONS = 1 << 40
    found = [measure(options.work, options.tokenizer, tasks, options) for tasks in options.tasks]
    rows = []
    for stage in [key for key in found[0] if key not in ("shards", "memory")]:
        grown = math.log(options.tasks[-1] / options.tasks[0])
        slope = math.log(found[-1][stage] / found[0][stage]) / grown if grown else math.nan
        seconds = {f"{tasks:,} tasks": f"{one[stage]:.2f} s" for tasks, one in zip(options.tasks, found, strict=True)}
        each = 1e3 * found[-1][stage] / options.tasks[-1]
        rows.append({"stage": stage, **seconds, "slope": f"{slope:.2f}", "a task": f"{each:.2f} ms"})
        print(rows[-1])
    sizes = {f"{tasks:,} tasks": f"{one['memory']:,.0f} MB" for tasks, one in zip(options.tasks, found, strict=True)}
    rows.append({"stage": "largest memory", **sizes, "slope": "", "a task": ""})
    if options.record:
        record("preparation", "scale", rows)


if __name__ == "__main__":
    main()

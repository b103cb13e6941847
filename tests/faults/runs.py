"""What the tests of faults have in common: a small run on two ranks, and the rows it has consumed."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.mixture import open_mixture
from tests.processes import TINY_RUN

LONG = os.environ.get("NARROWBERT_TEST_LONG") == "1"
"""Whether `make test-long` runs: the numbers of kills and steps that take minutes."""
BATCH = 8
OPTIONS = [
    *TINY_RUN, "--training.precision", "fp32", "--model.layout", "sf:sf", "--training.global_batch_size", str(BATCH),
    "--training.micro_batch_size", "2", "--training.eval_rows", "8",
]  # fmt: skip


def argv(run_dir: Path, shard_folder: Path, *options: str) -> list[str]:
    """The command line of a small run."""
    return ["train", *OPTIONS, "--run_dir", str(run_dir), "--data.path", str(shard_folder), *options]


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """What of that kind happened to a run."""
    found = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    return [event for event in found if event["kind"] == kind]


def consumed(record: Path) -> dict[int, list[int]]:
    """Sequence ids of every step in global order, from what inject.py has recorded.

    A step that was computed again after a kill must have had the same rows, whoever computed it.
    """
    steps: dict[int, dict[tuple[int, int], list[int]]] = {}
    for path in record.parent.glob(f"{record.name}-*"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            here = steps.setdefault(entry["step"], {})
            key = (entry["size"], entry["rank"])
            assert here.setdefault(key, entry["ids"]) == entry["ids"], f"step {entry['step']} had other rows"
    found = {}
    for step, parts in steps.items():
        for size in {size for size, _ in parts}:
            if any((size, rank) not in parts for rank in range(size)):
                continue  # a kill came between the ranks of a step that was computed again
            ids = [row for rank in range(size) for row in parts[size, rank]]
            assert found.setdefault(step, ids) == ids, f"step {step} had other rows on another number of ranks"
    return found


def expected_rows(
    shard_folder: Path, steps: int, seed: int = 1234, rows_of_steps: Sequence[int] | None = None
) -> dict[int, list[int]]:
    """The rows of every step by the definition of the order, without the trainer."""
    shards = open_mixture(str(shard_folder), None)
    split = shards.split("train")
    counts = rows_of_steps or [BATCH] * steps
    _, _, chunks, rows = shards.order(seed, counts[-1]).locate(np.arange(sum(counts)))
    ids = [int(split.chunk(int(chunk))["sequence_ids"][row]) for chunk, row in zip(chunks, rows, strict=True)]
    ends = list(itertools.accumulate(counts))
    return {step: ids[end - count : end] for step, (count, end) in enumerate(zip(counts, ends, strict=True))}

"""Time and memory of opening a shard folder in one process: schema 2 beside schema 1, and beside older code.

The folders are made up: a manifest, an index, and sparse tars of the sizes that these say. Opening checks the manifest,
the index, the tokenizer and the size of every tar, and gives a split whose ``chunk_rows`` are in memory; no chunk is
read. Each opening is a process of its own. The contestants take turns, and the table has medians of the rounds.

``--older`` names the working tree of an earlier commit, which opens the folder of schema 1 as it did then.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import record

SHAPES = ((100, 100_000), (1_000, 100_000), (10_000, 100_000), (100_000, 100_000), (100_000, 1_000_000))
"""(shards, chunks) of a folder's training split."""
CHUNK_ROWS, CHUNK_BYTES = 256, 1 << 20

OPEN = """
import gc, json, pathlib, sys, time
import numpy
from data_prep.contract.shards import open_shards

def kilobytes(key):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(key + ":")[1].split()[0])

gc.collect()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = kilobytes("VmRSS")
start = time.perf_counter()
split = open_shards(sys.argv[1]).split("train")
assert split.chunk_rows.sum() == split.num_rows
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": kilobytes("VmHWM") - before, "kept": kilobytes("VmRSS") - before}))
"""


def entries(split: str, shards: int, chunks: int) -> Iterator[dict[str, Any]]:
    """What ``write_shard`` would return for shards of these many chunks in all."""
    from data_prep.contract.shard_format import shard_name

    each, place = chunks // shards, CHUNK_BYTES + 512
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        yield {
            "name": shard_name(split, shard),
            "size": each * place + 1024,
            "sha256": f"{shard:064x}",
            "rows": each * CHUNK_ROWS,
            "chunks": [
                {"offset": i * place + 512, "length": CHUNK_BYTES, "rows": CHUNK_ROWS, "xxh3": f"{number:032x}"}
                for i, number in enumerate(numbers)
            ],
        }


def make_folder(folder: Path, shards: int, chunks: int) -> dict[int, bytes]:
    """A folder of sparse tars; schema version -> the manifest that it may have."""
    from data_prep.contract.manifest import compute_root_hash, manifest_bytes
    from data_prep.contract.shard_writing import write_manifest

    (folder / "tokenizer.json").write_bytes(b"{}")
    shapes = {"train": (shards, chunks), "validation": (1, 1)}
    content: dict[str, Any] = {
        "seq_length": 512,
        "masked_per_row": 77,
        "num_variants": 10,
        "vocab_size": 30_522,
        "special_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        "tokenizer": {"sha256": hashlib.sha256(b"{}").hexdigest()},
        "splits": {split: {"rows": count * CHUNK_ROWS} for split, (_, count) in shapes.items()},
    }
    write_manifest(folder, content, {split: entries(split, *shape) for split, shape in shapes.items()})
    manifests = {2: (folder / "manifest.json").read_bytes()}
    for split, shape in shapes.items():
        content["splits"][split]["shards"] = list(entries(split, *shape))
        for entry in content["splits"][split]["shards"]:
            descriptor = os.open(folder / entry["name"], os.O_WRONLY | os.O_CREAT)
            os.truncate(descriptor, entry["size"])
            os.close(descriptor)
    content["schema_version"] = 1
    content["root_hash"] = compute_root_hash(content)
    return {**manifests, 1: manifest_bytes(content)}


def opened(folder: Path, tree: Path) -> dict[str, float]:
    """What one process measured that opened the folder with the code of ``tree``."""
    command = [sys.executable, "-P", "-c", OPEN, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


def measure(shards: int, chunks: int, rounds: int, older: Path | None) -> dict[str, str]:
    """One row of the table."""
    here = Path(__file__).parents[1]
    contestants = {"schema 2": (2, here), "schema 1": (1, here)}
    if older is not None:
        contestants["schema 1, older code"] = (1, older)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifests = make_folder(folder, shards, chunks)
        found: dict[str, list[dict[str, float]]] = {contestant: [] for contestant in contestants}
        for _ in range(rounds):
            for contestant, (schema, tree) in contestants.items():
                (folder / "manifest.json").write_bytes(manifests[schema])
                found[contestant].append(opened(folder, tree))
        index = (folder / "train.index.safetensors").stat().st_size
    row = {"shards": f"{shards:,}", "chunks": f"{chunks:,}", "index": f"{index / 1e6:.1f} MB"}
    row["old manifest"] = f"{len(manifests[1]) / 1e6:.1f} MB"
    for contestant, measured in found.items():
        seconds, peak, kept = (statistics.median(m[key] for m in measured) for key in ("seconds", "peak", "kept"))
        row[contestant] = f"{seconds:.2f} s, {peak * 1024 / 1e6:.0f} MB (kept {kept * 1024 / 1e6:.0f})"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most_shards", type=int, default=SHAPES[-1][0], help="leave larger folders out")
    parser.add_argument("--older", type=Path, help="working tree of an earlier commit")
    parser.add_argument("--record", action="store_true", help="append the rows to results/opening.jsonl")
    arguments = parser.parse_args()
    rows = []
    for shards, chunks in SHAPES:
        if shards <= arguments.most_shards:
            rows.append(measure(shards, chunks, arguments.rounds, arguments.older))
            print(" | ".join(f"{name}: {cell}" for name, cell in rows[-1].items()), flush=True)
    if arguments.record:
        record("opening", "table-1", rows)


if __name__ == "__main__":
    main()

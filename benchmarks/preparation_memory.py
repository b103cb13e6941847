"""Peak memory of every process of `narrowbert-prep shards` on one large file.

    python benchmarks/preparation_memory.py --gigabytes 2 --tokenizer vocab.txt --work /some/disk

Writes a .txt of one document and a .jsonl of many, each of the given size; prepares each with two workers and prints
the largest resident memory (VmHWM) that each kind of process had, then the same of `narrowbert-prep verify`. Needs
about six times the size on disk, four times with --variants 1.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.2


SYLLABLES = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]


def words(draw: random.Random, count: int) -> str:
    """Random words, frequent ones short, with a long tail of rare ones."""
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.choice((1, 1, 1, 2, 2, 3)))) for _ in range(count))


def write_corpus(path: Path, size: int) -> None:
    draw = random.Random(1)
    block = [words(draw, 2_000) for _ in range(500)]
    written = 0
    with path.open("w") as stream:
        while written < size:
            text = f"{written:x} {draw.choice(block)}"
            line = json.dumps({"text": text}) + "\n" if path.suffix == ".jsonl" else text + "\n"
            written += stream.write(line)


def peak_of(pid: int) -> int:
    """Largest resident memory of a process so far, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else 0


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def measure(command: list[str]) -> tuple[int, int, float]:
    """(peak of the command's own process, largest peak of a worker, seconds)."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    own = workers = 0
    while process.poll() is None:
        own = max(own, peak_of(process.pid))
        workers = max([workers, *map(peak_of, children_of(process.pid))])
        time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(process.returncode)
    return own, workers, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json or vocab.txt")
    parser.add_argument("--files", nargs="+", default=["many.jsonl", "whole.txt"], choices=["many.jsonl", "whole.txt"])
    parser.add_argument("--variants", type=int, default=10, help="masks stored for every row")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder to be made, and removed at the end")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    try:
        for name in options.files:
            corpus, output = options.work / name, options.work / "shards"
            write_corpus(corpus, int(options.gigabytes * 1e9))
            command = [sys.executable, "-P", "-m", "data_prep", "shards", "--corpus.paths", str(corpus)]
            command += ["--tokenizer", options.tokenizer, "--output", str(output), "--num_workers", "2"]
            command += ["--mask.variants", str(options.variants)]
            if name == "whole.txt":  # all its pieces go to one split; another document fills the other
                (options.work / "short.txt").write_text(words(random.Random(2), 20_000))
                command[6] = f"[{corpus}, {options.work / 'short.txt'}]"
                command += ["--validation_fraction", "0.3"]
            own, workers, seconds = measure(command)
            print(f"{name}, {corpus.stat().st_size / 1e9:.2f} GB: main process {own / 1e6:,.0f} MB, ", end="")
            print(f"worker {workers / 1e6:,.0f} MB, {seconds:.0f} s", flush=True)
            own, workers, seconds = measure([*command[:4], "verify", str(output), "--num_workers", "2"])
            print(
                f"verify: main process {own / 1e6:,.0f} MB, worker {workers / 1e6:,.0f} MB, {seconds:.0f} s", flush=True
            )
            corpus.unlink()
            shutil.rmtree(output)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)


if __name__ == "__main__":
    main()

"""`narrowbert-prep shards` against the tokenizer library alone, and its shards against two other ways.

    python benchmarks/preparation.py --corpus 'corpus/*.jsonl.gz' --tokenizer vocab.txt

1. Speed, in turn in one run: the whole command as a process of its own with two workers (start, read, clean, exact
   duplicates, tokenize, pack, mask ten times, write, hash) against `encode_batch_fast` of the library over the
   same texts, already in memory, on two threads.
2. The tokenizer in pure Python, as google-research/bert has it, on a part of the text, one thread.
3. The shards against WebDataset's usual one member a row: bytes and read rate.
"""

import argparse
import gzip
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

THREADS = 2
SLOW_PART = 16  # the pure-Python tokenizer gets every n-th of the text's lines
ROWS_TO_READ = 20_000


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def read_texts(pattern: str) -> list[str]:
    texts = []
    folder, name = Path(pattern).parent, Path(pattern).name
    for path in sorted(folder.glob(name)):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
            texts += [json.loads(line)["text"] for line in stream]
    return texts


def speed(options: argparse.Namespace, texts: list[str], work: Path) -> Path:
    """Print the paired times; the shard folder of the last round."""
    from data_prep.contract.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    output = work / "shards"
    command = [
        *(sys.executable, "-P", "-m", "data_prep", "shards", "--corpus.paths", options.corpus),
        *("--tokenizer", options.tokenizer, "--output", str(output), "--num_workers", str(THREADS)),
    ]

    def ours() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def library() -> None:
        tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    times: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        shutil.rmtree(output, ignore_errors=True)
        times.append((seconds(ours), seconds(library)))
        print(f"  shards {times[-1][0]:.2f} s, library {times[-1][1]:.2f} s, {times[-1][0] / times[-1][1]:.2f}")
    print(f"{megabytes:.1f} MB of text, {len(texts)} documents, {THREADS} workers or threads, {options.rounds} rounds:")
    for name, column in (("narrowbert-prep shards, the whole command", 0), ("encode_batch_fast alone", 1)):
        median = statistics.median(pair[column] for pair in times)
        print(f"  {name}: median {median:.2f} s, {megabytes / median:.1f} MB/s")
    print(f"  ratio: median {statistics.median(a / b for a, b in times):.2f}")
    return output


# --- the tokenizer of google-research/bert, after its description --------------------------------------


def words_of(text: str) -> Iterator[str]:
    """Lower-case, strip accents, drop control characters, cut at white space and punctuation."""
    for word in text.split():
        folded = unicodedata.normalize("NFD", word.lower())
        current: list[str] = []
        for character in folded:
            category = unicodedata.category(character)
            if category == "Mn" or category.startswith("C"):
                continue
            if category.startswith("P") or (character.isascii() and not character.isalnum()):
                if current:
                    yield "".join(current)
                yield character
                current = []
            else:
                current.append(character)
        if current:
            yield "".join(current)


def pieces_of(word: str, vocabulary: dict[str, int], unknown: int) -> list[int]:
    """Greedy longest match first."""
    pieces, start = [], 0
    while start < len(word):
        end = len(word)
        while end > start and (("##" if start else "") + word[start:end]) not in vocabulary:
            end -= 1
        if end == start:
            return [unknown]
        pieces.append(vocabulary[("##" if start else "") + word[start:end]])
        start = end
    return pieces


def pure_python(options: argparse.Namespace, texts: list[str]) -> None:
    from data_prep.contract.tokenizer import load_tokenizer

    vocabulary = load_tokenizer(options.tokenizer).get_vocab()
    part = [line for text in texts for line in text.split("\n")][::SLOW_PART]
    taken = seconds(lambda: [pieces_of(w, vocabulary, vocabulary["[UNK]"]) for line in part for w in words_of(line)])
    print(f"pure-Python tokenizer, one thread: {sum(len(line.encode()) for line in part) / 1e6 / taken:.1f} MB/s")


# --- reading -------------------------------------------------------------------------------------------


def reading(folder: Path, work: Path) -> None:
    import webdataset as wds

    from data_prep.contract.shards import open_shards

    shards = open_shards(folder)
    split = shards.split("train")
    raw = size = 0
    rows: list[dict[str, np.ndarray]] = []
    for index in range(len(split.chunk_rows)):
        arrays = split.chunk(index)
        raw += sum(array.nbytes for array in arrays.values())
        fields = ("input_ids", "masked_positions", "replacement_ids")
        rows += [{name: arrays[name][row] for name in fields} for row in range(len(arrays["lengths"]))]
    rows = rows[:ROWS_TO_READ]
    size = shards.indexes["train"].size
    print(f"shards: {size:,} bytes, {size / raw:.4f} of the raw arrays' {raw:,}")
    path = work / "one-member-a-row.tar"
    with wds.TarWriter(str(path)) as writer:
        for number, row in enumerate(rows):
            members = {}
            for name, array in row.items():
                stream = io.BytesIO()
                np.save(stream, array)
                members[f"{name}.npy"] = stream.getvalue()
            writer.write({"__key__": f"{number:08d}", **members})
    raw_rows = sum(array.nbytes for row in rows for array in row.values())
    print(f"one .npy member a field and row: {path.stat().st_size / raw_rows:.2f} of the raw arrays")

    def read_ours() -> None:
        fresh = open_shards(folder).split("train")
        for index in range(len(fresh.chunk_rows)):
            sum(int(array.sum()) for array in fresh.chunk(index).values())

    def read_members() -> None:
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            sum(int(np.load(io.BytesIO(v)).sum()) for k, v in sample.items() if k.endswith(".npy"))

    ratios, rates = [], []
    for _ in range(5):
        ours = split.num_rows / seconds(read_ours)
        theirs = len(rows) / seconds(read_members)
        ratios.append(ours / theirs)
        rates.append((ours, theirs))
    ours, theirs = (statistics.median(rate[column] for rate in rates) for column in (0, 1))
    print(f"read rate, every number added up, one process: {ours:,.0f} rows/s against {theirs:,.0f}, ", end="")
    print(f"ratio {statistics.median(ratios):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="pattern of .jsonl or .jsonl.gz files with a field 'text'")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.json or vocab.txt")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.update(RAYON_NUM_THREADS=str(THREADS), TOKENIZERS_PARALLELISM="true")
    texts = read_texts(options.corpus)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shards = speed(options, texts, work)
        pure_python(options, texts)
        reading(shards, work)


if __name__ == "__main__":
    main()

"""Folders of more shards than a process may open files."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from data_prep.contract import shard_index
from data_prep.contract.files import raise_descriptor_limit
from data_prep.contract.shard_format import chunk_hash
from data_prep.contract.shard_index import RECENT_CHUNKS
from data_prep.contract.shard_writing import write_manifest, write_shard
from data_prep.contract.shards import open_folder, open_shards
from tests.data_prep.shard_folders import make_chunks, make_folder

READ_TWICE = """
import os, resource, sys, numpy
from concurrent.futures import ThreadPoolExecutor
from data_prep.contract.shards import open_shards
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
splits = [open_shards(sys.argv[1]).split("train") for _ in range(2)]
kept = splits[0].chunk(0)["input_ids"]
before = kept.copy()
with ThreadPoolExecutor(4) as threads:
    for _ in range(2):
        for split in splits:
            numbers = range(len(split.chunk_rows))
            first_ids = threads.map(lambda n, split=split: int(split.chunk(n)["sequence_ids"][0]), numbers)
            assert list(first_ids) == list(numbers)
numpy.testing.assert_array_equal(kept, before)
print(len(os.listdir("/proc/self/fd")))
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """2,000 training shards of one chunk of one row."""
    folder = make_folder(tmp_path_factory.mktemp("many") / "shards")
    chunk = next(make_chunks(np.full(8, 50), "concat", 0))
    row = {name: array[: 1 + (name == "boundary_offsets")] for name, array in chunk.items()}
    row["boundary_positions"] = chunk["boundary_positions"][: chunk["boundary_offsets"][1]]
    entries = [
        write_shard(folder, "train", number, [{**row, "sequence_ids": row["sequence_ids"] + number}])
        for number in range(2000)
    ]
    validation = write_shard(folder, "validation", 0, [row])
    content = {**open_folder(folder).manifest, "splits": {"train": {"rows": 2000}, "validation": {"rows": 1}}}
    write_manifest(folder, content, {"train": entries, "validation": [validation]})
    return folder


def test_2000_shards_are_read_with_256_descriptors(many_shards):
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ_TWICE, str(many_shards)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


def test_a_chunk_is_hashed_once(many_shards, monkeypatch):
    hashed = []
    monkeypatch.setattr(shard_index, "chunk_hash", lambda data: hashed.append(0) or chunk_hash(data))
    monkeypatch.setattr(RECENT_CHUNKS, "MOST", 5)
    split = open_shards(many_shards).split("train")
    first = split.chunk(0)
    for _ in range(2):
        for index in range(20):
            split.chunk(index)
    assert split.chunk(0) is not first, "it was dropped, and mapped again"
    assert split.chunk(0) is split.chunk(0)
    assert len(hashed) == 20


def test_the_soft_limit_is_raised_and_never_lowered():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for before, after in ((200, min(hard, 65_536)), (soft, soft)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
            raise_descriptor_limit()
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (max(before, after), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

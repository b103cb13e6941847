"""Folders without masks give the batches and rows of folders that store them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.batches import make_batch
from pipeline.data.mixture import open_mixture
from pipeline.data.plain_webdataset import as_webdataset
from tests.conftest import run_command


@pytest.fixture(scope="module")
def drawn_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of `shard_folder`, without masks."""
    folder = tmp_path_factory.mktemp("drawn") / "shards"
    run_command(
        "data_prep", "shards", "--corpus.paths", str(shard_folder.parent / "corpus.jsonl"), "--output", str(folder),
        "--tokenizer", str(shard_folder / "tokenizer.json"), "--seq_length", "32", "--mask.variants", "3",
        "--validation_fraction", "0.15", "--chunk_rows", "32", "--rows_per_shard", "128", "--num_workers", "1",
        "--mask.stored", "false",
    )  # fmt: skip
    return folder


def test_a_mixture_of_both_reads_the_same_from_both(shard_folder: Path, drawn_folder: Path) -> None:
    split = open_mixture([str(shard_folder), str(drawn_folder)], [1, 1]).split("train")
    stored, drawn = split.parts
    assert "num_masked" in stored.chunk(0)
    assert "num_masked" not in drawn.chunk(0)
    draw, count = np.random.default_rng(0), len(stored.chunk_rows)
    assert count > 3
    for _ in range(5):
        chunks = draw.integers(0, count, 40)
        rows, variants = draw.integers(0, stored.chunk_rows[chunks]), draw.integers(0, 3, 40)
        batches = [make_batch(split, chunks + first, rows, variants) for first in (0, count)]
        mixed = make_batch(split, chunks + draw.integers(0, 2, 40) * count, rows, variants)
        for batch in (batches[1], mixed):
            for name, tensor in batches[0].tensors.items():
                assert torch.equal(batch.tensors[name], tensor), name


def test_plain_rows_are_the_same(shard_folder: Path, drawn_folder: Path) -> None:
    for split in ("train", "validation"):
        pairs = zip(*(as_webdataset(folder, split, epoch=4) for folder in (shard_folder, drawn_folder)), strict=True)
        for stored, drawn in pairs:
            assert stored.keys() == drawn.keys()
            for name, value in stored.items():
                np.testing.assert_array_equal(drawn[name], value)

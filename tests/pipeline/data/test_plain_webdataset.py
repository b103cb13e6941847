"""A shard folder as a plain WebDataset pipeline, against the rows that training reads."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from webdataset.compat import WebLoader

from data_prep.contract.command_line import UserError
from pipeline.data.batches import Batch, make_batch, validation_batches
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.plain_webdataset import PlainRow, as_webdataset
from tests.pipeline.data.damaged_shards import damage


def expected_rows(shards: Mixture, variant: int) -> Batch:
    """All training rows in the order of the files."""
    split = shards.split("train")
    chunks = np.repeat(np.arange(len(split.chunk_rows)), split.chunk_rows)
    rows = np.concatenate([np.arange(count) for count in split.chunk_rows])
    return make_batch(split, chunks, rows, np.full(len(rows), variant))


def assert_equal_to_batch(rows: list[PlainRow], batch: Batch) -> None:
    for name in ("input_ids", "masked_positions", "labels", "label_mask", "document_ids"):
        theirs, ours = np.stack([row[name] for row in rows]), getattr(batch, name).numpy()
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours, err_msg=name)
    assert [row["sequence_id"] for row in rows] == batch.sequence_ids.tolist()
    attention_mask = np.stack([row["attention_mask"] for row in rows])
    assert attention_mask.dtype == bool
    ours = np.ones_like(attention_mask) if batch.key_mask is None else batch.key_mask[:, 0, 0].numpy()
    np.testing.assert_array_equal(attention_mask, ours)


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("fixture", ["shard_folder", "ragged_shard_folder"])
def test_rows_are_those_of_training_in_the_order_of_the_files(
    fixture: str, epoch: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    rows = list(as_webdataset(folder, epoch=epoch))
    assert_equal_to_batch(rows, expected_rows(open_mixture(str(folder), None), epoch % 3))
    assert len({row["__key__"] for row in rows}) == len(rows)


def test_the_masks_hide_what_the_labels_say(shard_folder: Path) -> None:
    changed = 0
    for row in as_webdataset(shard_folder):
        positions = row["masked_positions"][row["label_mask"]]
        np.testing.assert_array_equal(row["original_ids"][positions], row["labels"][row["label_mask"]])
        assert set(np.flatnonzero(row["original_ids"] != row["input_ids"])) <= set(positions)
        changed += int((row["original_ids"] != row["input_ids"]).sum())
    assert changed


def test_validation_rows_are_those_of_validation_in_any_epoch(shard_folder: Path, shards: Mixture) -> None:
    rows = list(as_webdataset(shard_folder, "validation", epoch=2))
    (batch,) = validation_batches(
        shards, max_rows=len(rows), micro_batch_size=len(rows), data_rank=0, data_parallel_size=1
    )
    assert shards.split("validation").num_rows == len(rows)
    assert_equal_to_batch(rows, batch)


def test_a_shuffled_order_follows_from_seed_and_epoch(shard_folder: Path) -> None:
    def keys(seed: int | None, epoch: int = 0) -> list[str]:
        return [row["__key__"] for row in as_webdataset(shard_folder, shuffle_seed=seed, epoch=epoch)]

    assert keys(1) == keys(1)
    orders = [keys(None), keys(1), keys(2), keys(1, epoch=1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == orders[0] for order in orders)
    assert keys(None, epoch=1) == orders[0]
    shards_in_turn = [shard for shard, _ in itertools.groupby(order[:11] for order in keys(1))]
    assert sorted(shards_in_turn) == sorted({key[:11] for key in orders[0]})


def test_shuffled_rows_keep_their_contents(shard_folder: Path) -> None:
    in_order = {row["__key__"]: row for row in as_webdataset(shard_folder)}
    for row in as_webdataset(shard_folder, shuffle_seed=3):
        for name, value in row.items():
            np.testing.assert_array_equal(value, in_order[row["__key__"]][name])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_share_the_shards(shard_folder: Path, start: str) -> None:
    dataset = as_webdataset(shard_folder).batched(8)
    loader = WebLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    batches = list(loader)
    assert all(isinstance(batch["input_ids"], torch.Tensor) for batch in batches)
    found = [key for batch in batches for key in batch["__key__"]]
    assert sorted(found) == sorted(row["__key__"] for row in as_webdataset(shard_folder))


def test_a_damaged_chunk_is_named(shard_folder: Path, shards: Mixture, tmp_path: Path) -> None:
    broken = shutil.copytree(shard_folder, tmp_path / "broken")
    damage(broken, shards, 1)
    with pytest.raises(UserError, match=r"train-00000\.tar, chunk 1"):
        list(as_webdataset(broken))


def test_mistakes_are_said_at_once(shard_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'"):
        as_webdataset(shard_folder, "test")
    with pytest.raises(UserError, match="epoch is -1"):
        as_webdataset(shard_folder, epoch=-1)
    with pytest.raises(UserError, match="no shard folder"):
        as_webdataset(tmp_path / "none")

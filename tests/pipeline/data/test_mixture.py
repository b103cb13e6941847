"""Shard folders mixed by weight: which agree, their shares, and what is refused."""

import ast
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError
from data_prep.contract.manifest import read_manifest
from data_prep.contract.shard_writing import write_manifest
from data_prep.contract.shards import ShardFolder
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.data.order import MAX_PERIOD, RowOrder
from tests.data_prep.shard_folders import entries_of


def test_one_folder_keeps_its_own_order(shards: Mixture) -> None:
    (folder,), positions = shards.folders, np.arange(5000)
    alone = RowOrder(folder.split("train").chunk_rows, folder.root_hash, 5, lanes=10)
    mixed = shards.order(5, 10).locate(positions)
    assert not mixed[0].any()
    for ours, theirs in zip(mixed[1:], alone.locate(positions), strict=True):
        assert np.array_equal(ours, theirs)
    assert shards.root_hash == folder.root_hash


@given(st.lists(st.decimals(Decimal("0.001"), 400, places=3), min_size=2, max_size=2))
@settings(max_examples=30, deadline=None)
def test_weights_are_the_decimal_fractions_that_were_written(
    shard_folder: Path, second_shard_folder: Path, weights: list[Decimal]
) -> None:
    shares = open_mixture([str(shard_folder), str(second_shard_folder)], [float(weight) for weight in weights]).shares
    assert Fraction(shares[0], shares[1]) == Fraction(weights[0]) / Fraction(weights[1])
    assert math.gcd(*shares) == 1


def test_equal_ratios_are_one_mixture_and_others_are_not(shard_folder: Path, second_shard_folder: Path) -> None:
    one, other = str(shard_folder), str(second_shard_folder)
    mixture = open_mixture([one, other], [3, 1])
    parts = [[folder.root_hash, share] for folder, share in zip(mixture.folders, (3, 1), strict=True)]
    assert mixture.root_hash == hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()
    assert open_mixture([one, other], [0.75, 0.25]).root_hash == mixture.root_hash
    different = [open_mixture([one, other], [1, 3]), open_mixture([other, one], [3, 1]), open_mixture(one, None)]
    assert len({mixture.root_hash, *(each.root_hash for each in different)}) == 4


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=5), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_validation_takes_the_shares_as_far_as_there_are_rows(folders: list[tuple[int, int]], max_rows: int) -> None:
    shares, rows = zip(*folders, strict=True)
    manifests = [{"splits": {"validation": {"rows": n}}} for n in rows]
    mixture = Mixture(folders=tuple(ShardFolder(path=Path(), manifest=m, indexes={}) for m in manifests), shares=shares)
    chosen = mixture.validation_rows(max_rows)
    assert len(chosen) == len(set(chosen)) == min(max_rows, sum(rows))
    assert np.array_equal(chosen, mixture.validation_rows(10**6)[:max_rows])
    counts = np.histogram(chosen, np.cumsum([0, *rows]) - 0.5)[0]
    for folder, count in enumerate(counts):
        in_folder = chosen[(chosen >= sum(rows[:folder])) & (chosen < sum(rows[: folder + 1]))] - sum(rows[:folder])
        assert np.array_equal(in_folder, np.arange(count))
        expected = len(chosen) * shares[folder] / sum(shares)
        if count < rows[folder]:
            assert count > expected - len(rows)
        if all(n < size for n, size in zip(counts, rows, strict=True)):
            assert abs(count - expected) < len(rows)


def altered(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """A copy of a shard folder with another manifest."""
    shutil.copytree(folder, target)
    manifest = {key: value for key, value in read_manifest(folder).items() if key != "root_hash"}
    change(manifest)
    rows = {split: entry["rows"] for split, entry in manifest["splits"].items()}
    entries = entries_of(folder)
    write_manifest(target, manifest, {split: entries[split] if rows[split] else [] for split in entries})
    return str(target)


def tokenizer_of_another_sha256(target: Path) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        content = (target / "tokenizer.json").read_bytes() + b"\n"
        (target / "tokenizer.json").write_bytes(content)
        manifest["tokenizer"] = {**manifest["tokenizer"], "sha256": hashlib.sha256(content).hexdigest()}

    return change


@pytest.mark.parametrize("what", ["tokenizer", "vocab_size", "special_ids", "seq_length", "masked_per_row"])
def test_folders_that_differ_are_named_with_what_differs(
    shard_folder: Path, second_shard_folder: Path, tmp_path: Path, what: str
) -> None:
    target = tmp_path / "other"
    changes = {
        "tokenizer": tokenizer_of_another_sha256(target),
        "special_ids": lambda manifest: manifest["special_ids"].update(mask=9),
    }
    other = altered(
        second_shard_folder, target, changes.get(what, lambda manifest: manifest.update({what: manifest[what] + 1}))
    )
    with pytest.raises(UserError) as caught:
        open_mixture([str(shard_folder), other], [1, 1])
    assert f"{shard_folder} and {other} in data.path cannot be mixed: {what} is " in str(caught.value)


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], []])
def test_weights_that_do_not_fit_the_folders(
    shard_folder: Path, second_shard_folder: Path, weights: list[float]
) -> None:
    with pytest.raises(UserError, match=r"for 2 folders in data\.path: give one number above 0 for each"):
        open_mixture([str(shard_folder), str(second_shard_folder)], weights)


@pytest.mark.parametrize("weights", [None, [1 / 3, 0.6], [1, 10**7], [1e-300, 1]])
def test_weights_that_are_suggested_are_accepted(
    shard_folder: Path, second_shard_folder: Path, weights: list[float] | None
) -> None:
    paths = [str(shard_folder), str(second_shard_folder)]
    with pytest.raises(UserError) as caught:
        open_mixture(paths, weights)
    message = str(caught.value)
    assert ("is not given" if weights is None else f"more than {MAX_PERIOD:,} rows") in message
    suggested = ast.literal_eval(message[message.rindex("[") : message.rindex("]") + 1])
    wanted = weights or open_mixture(paths, [1, 1]).train_rows
    assert suggested == pytest.approx([weight / sum(wanted) for weight in wanted], abs=1e-3)
    assert sum(open_mixture(paths, suggested).shares) <= MAX_PERIOD


def test_paths_that_are_no_mixture(shard_folder: Path, second_shard_folder: Path, tmp_path: Path) -> None:
    def without_rows(manifest: dict[str, Any]) -> None:
        manifest["splits"]["train"]["rows"] = 0

    copy = tmp_path / "copy"
    shutil.copytree(shard_folder, copy)
    empty = altered(second_shard_folder, tmp_path / "empty", without_rows)
    for paths, weights, expected in [
        ([], None, "data.path is an empty list"),
        ([str(shard_folder), str(copy)], [1, 1], "hold the same rows"),
        ([str(shard_folder), str(empty)], [1, 1], f"{empty} has no training rows"),
        ([str(shard_folder), "nowhere"], [1, 1], "nowhere"),
    ]:
        with pytest.raises(UserError) as caught:
            open_mixture(paths, weights)
        assert expected in str(caught.value)

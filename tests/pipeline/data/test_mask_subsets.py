"""Which of a row's masked positions a step of a lower mask rate takes."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.contract.tokenizer import continues_word, load_tokenizer
from pipeline.config import TrainingConfig
from pipeline.data.batches import Batch, TrainingData, make_batch, validation_batches
from pipeline.data.mask_subsets import MaskSubsets
from pipeline.data.mixture import Mixture, open_mixture
from tests.conftest import run_command

SLOTS, LENGTH = 12, 40
UNITS = ["token", "word", "span"]
CONTINUES = np.array([False, True] * 20)  # by token id


class Subsets(MaskSubsets):
    """Of rows that no folder holds."""

    _continues_word = CONTINUES

    def __init__(self, unit: str, seed: int) -> None:
        super().__init__([SimpleNamespace(mask_unit=unit)], seed)  # type: ignore[list-item]


@st.composite
def masked_rows(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Rows and their masks as ``ShardSplit.masks`` gives them."""
    counts = np.array(draw(st.lists(st.integers(0, SLOTS), min_size=1, max_size=6)))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    positions = np.zeros((len(counts), SLOTS), np.uint16)
    for row, count in enumerate(counts):
        positions[row, :count] = np.sort(random.choice(LENGTH, count, replace=False))
    return {
        "input_ids": random.integers(0, len(CONTINUES), (len(counts), LENGTH)).astype(np.uint16),
        "sequence_ids": random.integers(0, 2**63, len(counts), dtype=np.uint64),
        "masked_positions": positions,
        "replacement_ids": (1000 + positions).astype(np.uint16),  # so that each tells where it belongs
        "num_masked": counts.astype(np.uint16),
    }


def taken(fields: Mapping[str, np.ndarray], unit: str, masked_per_row: int, seed: int = 1) -> list[set[int]]:
    """The positions of each row, after what must hold of any masks."""
    rows = len(fields["num_masked"])
    variants = np.arange(rows)
    found = Subsets(unit, seed).take(fields, np.zeros(rows, int), variants, masked_per_row)
    assert found["masked_positions"].shape == found["replacement_ids"].shape == (rows, masked_per_row)
    subsets = []
    for row, count in enumerate(found["num_masked"].tolist()):
        positions, unused = np.split(found["masked_positions"][row], [count])
        assert np.all(np.diff(positions) > 0)
        assert not unused.any()
        assert np.array_equal(found["replacement_ids"][row, :count], 1000 + positions)
        subsets.append(set(positions.tolist()))
    return subsets


@given(masked_rows(), st.sampled_from(UNITS))
def test_subsets_are_nested_and_as_large_as_they_should_be(fields: dict[str, np.ndarray], unit: str) -> None:
    whole = [
        set(positions[:count].tolist())
        for positions, count in zip(fields["masked_positions"], fields["num_masked"], strict=True)
    ]
    by_size = [taken(fields, unit, masked_per_row) for masked_per_row in range(1, SLOTS + 1)]
    assert by_size[-1] == whole
    for row, all_masked in enumerate(whole):
        sizes = [subsets[row] for subsets in by_size]
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(sizes))
        for masked_per_row, subset in enumerate(sizes, start=1):
            wanted = min(len(all_masked), max(1, int(len(all_masked) * masked_per_row / SLOTS + 0.5)))
            assert subset <= all_masked
            assert len(subset) == wanted if unit == "token" else min(1, wanted) <= len(subset) <= wanted


def words_of(positions: set[int], ids: np.ndarray) -> list[set[int]]:
    words: list[set[int]] = []
    for position in sorted(positions):
        if words and position - 1 in words[-1] and CONTINUES[ids[position]]:
            words[-1].add(position)
        else:
            words.append({position})
    return words


@given(masked_rows(), st.sampled_from(["word", "span"]), st.integers(1, SLOTS))
def test_words_stay_whole(fields: dict[str, np.ndarray], unit: str, masked_per_row: int) -> None:
    whole = taken(fields, unit, SLOTS)
    for row, subset in enumerate(taken(fields, unit, masked_per_row)):
        cut = [word for word in words_of(whole[row], fields["input_ids"][row]) if 0 < len(word & subset) < len(word)]
        assert not cut or subset == cut[0] & subset, "a word is cut only where it is alone too long"


@given(masked_rows(), st.integers(1, SLOTS))
def test_spans_that_touch_are_taken_one_after_the_other(fields: dict[str, np.ndarray], masked_per_row: int) -> None:
    whole = taken(fields, "span", SLOTS)
    for row, subset in enumerate(taken(fields, "span", masked_per_row)):
        starts = {position for position in whole[row] if position - 1 not in whole[row]}
        broken = {position for position in subset if position - 1 in whole[row] and position - 1 not in subset}
        assert not broken - starts, "a run is taken from its beginning"
        ends = {position for position in subset if position + 1 in whole[row] and position + 1 not in subset}
        assert len(ends) <= 1, "one run at most is cut"


def test_every_position_is_as_likely_and_the_key_decides() -> None:
    rows = 4000
    fields = {
        "input_ids": np.zeros((rows, LENGTH), np.uint16), "sequence_ids": np.arange(rows, dtype=np.uint64),
        "masked_positions": np.tile(3 * np.arange(SLOTS, dtype=np.uint16), (rows, 1)),
        "replacement_ids": 1000 + np.tile(3 * np.arange(SLOTS, dtype=np.uint16), (rows, 1)),
        "num_masked": np.full(rows, SLOTS, np.uint16),
    }  # fmt: skip
    subsets = taken(fields, "token", 4)
    counts = [sum(3 * slot in subset for subset in subsets) for slot in range(SLOTS)]
    assert np.allclose(counts, rows * 4 / SLOTS, rtol=0.1)
    same = sum(one == other for one, other in zip(subsets, taken(fields, "token", 4, seed=2), strict=True))
    assert same < rows / 50
    again = {name: values[::-1] for name, values in fields.items()}
    backwards = Subsets("token", 1).take(again, np.zeros(rows, int), np.arange(rows)[::-1], 4)["masked_positions"]
    assert [set(row.tolist()) for row in backwards[::-1]] == subsets, "the order of the rows has no part in it"


def rows_of(batches: list[Batch]) -> list[dict[str, Any]]:
    """The fields of each row."""
    return [
        {name: tensor[b] for name, tensor in batch.tensors.items()}
        for batch in batches
        for b in range(len(batch.sequence_ids))
    ]


def contents(batches: list[Batch]) -> list[tuple[bytes, bytes]]:
    """Input and masked positions of each row, sorted."""
    return sorted(
        (row["input_ids"].numpy().tobytes(), row["masked_positions"].numpy().tobytes()) for row in rows_of(batches)
    )


def steps_of(shards: Mixture, rate: float | None, rank: int = 0, size: int = 1, steps: int = 6) -> list[Batch]:
    rates = () if rate is None else ((0, rate),)
    training = TrainingConfig(global_batch_size=16, micro_batch_size=4, mask_rate=rates)
    data = TrainingData(shards, training, seed=5, data_rank=rank, data_parallel_size=size)
    return [batch for step in range(steps) for batch in data.step(step)]


@pytest.mark.parametrize("folders", ["shards", "mixture"])
def test_batches_of_a_lower_rate_keep_the_other_tokens(folders: str, request: pytest.FixtureRequest) -> None:
    shards = request.getfixturevalue(folders)
    special = torch.tensor([shards.special_ids[role] for role in ("cls", "sep", "pad")])
    full, lower = (rows_of(steps_of(shards, rate)) for rate in (None, 0.1))
    dropped = 0
    for row, whole in zip(lower, full, strict=True):
        assert len(row["masked_positions"]) == 3
        used = row["masked_positions"][row["label_mask"]]
        labels = dict(zip(used.tolist(), row["labels"][row["label_mask"]].tolist(), strict=True))
        assert not torch.isin(row["labels"][row["label_mask"]], special).any()
        masked = whole["masked_positions"][whole["label_mask"]].tolist()
        for position, label in zip(masked, whole["labels"][whole["label_mask"]].tolist(), strict=True):
            if position in labels:
                assert labels[position] == label
                assert row["input_ids"][position] == whole["input_ids"][position]
            else:
                assert row["input_ids"][position] == label, "what is not predicted is there to be read"
                dropped += 1
        unmasked = torch.ones(shards.seq_length, dtype=torch.bool)
        unmasked[whole["masked_positions"][whole["label_mask"]]] = False
        assert torch.equal(row["input_ids"][unmasked], whole["input_ids"][unmasked])
    assert dropped > len(lower)


@pytest.mark.parametrize("folders", ["shards", "mixture"])
@pytest.mark.parametrize("size", [2, 4])
def test_subsets_are_the_same_on_any_number_of_processes(
    folders: str, size: int, request: pytest.FixtureRequest
) -> None:
    shards = request.getfixturevalue(folders)
    shared = [batch for rank in range(size) for batch in steps_of(shards, 0.1, rank, size)]
    assert contents(shared) == contents(steps_of(shards, 0.1))


def test_the_full_rate_is_what_the_shards_hold(shards: Mixture) -> None:
    for one, other in zip(steps_of(shards, None), steps_of(shards, 0.15), strict=True):
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_evaluations_of_a_lower_rate_are_the_same_for_every_run(shards: Mixture) -> None:
    sizes: dict[str, Any] = {"max_rows": 10**6, "micro_batch_size": 4, "masked_per_row": 2}
    alone = list(validation_batches(shards, **sizes, data_rank=0, data_parallel_size=1))
    shared = [b for rank in (0, 1) for b in validation_batches(shards, **sizes, data_rank=rank, data_parallel_size=2)]
    assert {batch.masked_positions.shape[1] for batch in alone} == {2}
    assert set(contents(shared)) == set(contents(alone))


@pytest.fixture(scope="module")
def folders_of_words(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The rows of `shard_folder` with 12 of 32 tokens masked by words, stored and not."""
    folders = []
    for stored in ("true", "false"):
        folders.append(tmp_path_factory.mktemp("words") / "shards")
        run_command(
            "data_prep", "shards", "--corpus.paths", str(shard_folder.parent / "corpus.jsonl"),
            "--output", str(folders[-1]), "--tokenizer", str(shard_folder / "tokenizer.json"), "--seq_length", "32",
            "--mask.variants", "3", "--mask.unit", "word", "--mask.per_row", "12", "--validation_fraction", "0.15",
            "--chunk_rows", "32", "--rows_per_shard", "128", "--num_workers", "1", "--mask.stored", stored,
        )  # fmt: skip
    return folders


def test_words_of_real_shards_stay_whole_stored_or_drawn(folders_of_words: list[Path]) -> None:
    stored, drawn = (open_mixture(str(folder), None) for folder in folders_of_words)
    rows = np.arange(96)  # of three chunks

    def read(shards: Mixture, masked_per_row: int) -> Batch:
        subsets = MaskSubsets(shards.folders, 5)
        return make_batch(shards.split("train"), rows // 32, rows % 32, rows % 3, subsets, masked_per_row)

    one, other = read(stored, 6), read(drawn, 6)
    assert one.masked_positions.shape[1] == 6
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    continues = continues_word(load_tokenizer(stored.tokenizer_path))
    longer = 0
    for row, whole in zip(rows_of([one]), rows_of([read(stored, 12)]), strict=True):
        kept = set(row["masked_positions"][row["label_mask"]].tolist())
        all_masked = whole["masked_positions"][whole["label_mask"]].tolist()
        labels = dict(zip(all_masked, whole["labels"].tolist(), strict=False))
        for position in all_masked:
            if continues[labels[position]] and position - 1 in labels:
                longer += 1
                assert (position in kept) == (position - 1 in kept)
    assert longer > 50, "take another vocabulary: no word has two tokens"


def test_subsets_of_a_mixture_go_by_the_unit_of_each_folder(folders_of_words: list[Path], shards: Mixture) -> None:
    words = open_mixture(str(folders_of_words[0]), None)
    (by_words,) = words.folders
    by_tokens = dataclasses.replace(
        by_words, manifest=by_words.manifest | {"configuration": {"mask": {"unit": "token"}}}
    )
    rows = np.arange(16)
    for folder, unit in ((0, "word"), (1, "token")):
        split = Mixture(folders=(by_words, by_tokens), shares=(1, 1)).split("train")
        subsets = MaskSubsets((by_words, by_tokens), 1)
        chunk = np.full(16, folder * len(by_words.indexes["train"].chunk_rows))
        alone = MaskSubsets((by_words if unit == "word" else by_tokens,), 1)
        one = make_batch(split, chunk, rows, rows % 3, subsets, 6)
        other = make_batch(words.split("train"), np.zeros(16, int), rows, rows % 3, alone, 6)
        assert torch.equal(one.masked_positions, other.masked_positions)
    assert shards.folders[0].mask_unit == "token"

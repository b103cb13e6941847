"""What a step does on an accelerator, as far as a processor can tell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.contract.shard_writing import write_manifest, write_shard
from data_prep.contract.shards import open_shards
from tests.marks import long
from tests.processes import losses, run_command


def observe(backend: str, run_dir: Path, shard_folder: Path, *options: str) -> dict[str, Any]:
    ended = run_command("tests.pipeline.training.observe", backend, str(run_dir), str(shard_folder), *options)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_padded_row(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows; in each chunk the tenth ends early, the others do not."""
    folder = tmp_path_factory.mktemp("padded")
    (folder / "tokenizer.json").write_bytes((shard_folder / "tokenizer.json").read_bytes())
    original = open_shards(shard_folder)
    entries = {}
    for name in original.indexes:
        split = original.split(name)
        chunks = [{field: a.copy() for field, a in split.chunk(i).items()} for i in range(len(split.chunk_rows))]
        for chunk in chunks:
            chunk["lengths"][:] = chunk["input_ids"].shape[1]
            chunk["lengths"][9:10] -= 1
            last = chunk["masked_positions"] == chunk["input_ids"].shape[1] - 1
            chunk["masked_positions"][last] -= 1
        entries[name] = [write_shard(folder, name, 0, chunks)]
    write_manifest(folder, {k: v for k, v in original.manifest.items() if k != "root_hash"}, entries)
    return folder


def test_a_step_waits_neither_for_the_device_nor_for_the_kernels_pages(tmp_path: Path, shard_folder: Path) -> None:
    options = ["--training.zero_stage", "2", "--training.log_interval", "10"]
    seen = observe("none", tmp_path / "run", shard_folder, *options, "--training.save_interval", "100")
    notes = seen["notes"]
    assert len(notes) == 10 * 4
    assert notes[-1]["synchronizations"] == notes[0]["synchronizations"]
    pages = 2**26 // 4096
    assert seen["page_faults"] < 2 * pages, "what is freed goes back to the kernel: 64 MiB were taken 8 times"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "options"),
    [
        long("1", []),
        long("2", ["--model.document_attention", "isolated", "--model.position", "rope"]),
        # More shapes than torch compiles a function for unless told.
        ("1", ["--training.mask_rate", "[[0, .16], [2, .13], [4, .09], [6, .06], [8, .03]]"]),
    ],
)
def test_a_padded_row_compiles_nothing_in_the_middle_of_a_run(
    tmp_path: Path, one_padded_row: Path, stage: str, options: list[str]
) -> None:
    same = ["--training.zero_stage", stage, "--model.layout", "sf:2sf", "--training.eval_interval", "5", *options]
    # Dropout's random numbers are not those of eager kernels.
    same += ["--model.hidden_dropout", "0", "--model.attention_dropout", "0", "--training.precision", "fp32"]
    seen = observe("aot_eager", tmp_path / "compiled", one_padded_row, *same)
    kinds = [note["padded"] for note in seen["notes"]]
    assert True in kinds
    assert False in kinds
    assert {note["graphs"] for note in seen["notes"]} == {seen["graphs"]}, "compiled after the first step began"
    rates = 5 if "--training.mask_rate" in options else 1
    assert 0 < seen["graphs"] < 24 + 6 * (rates - 1)
    assert seen["breaks"] == 0
    plain = observe("none", tmp_path / "plain", one_padded_row, *same)
    assert plain["graphs"] == 0
    compiled, eager = losses(tmp_path / "compiled"), losses(tmp_path / "plain")
    assert compiled == pytest.approx(eager, rel=1e-5)


@pytest.mark.slow
def test_gradients_are_handed_over_during_the_backward_pass(tmp_path: Path, shard_folder: Path) -> None:
    shape = [
        "--model.layout", "2sf:4sf", "--model.hidden_size", "256", "--model.ffn_hidden_size", "1024",
        "--training.zero_stage", "0", "--training.precision", "fp32", "--training.train_steps", "2",
    ]  # fmt: skip
    notes = observe("aot_eager", tmp_path / "run", shard_folder, *shape)["notes"]
    start, *times = notes[-1]["gradients"]
    shares = (np.array(times) - start) / (times[-1] - start)
    assert shares[0] < 0.25
    assert shares[len(shares) // 2] < 0.75

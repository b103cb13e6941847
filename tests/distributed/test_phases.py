"""Runs that start from a checkpoint of another run: as if it had gone on, and without it afterwards."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.contract.command_line import UserError, read_config
from pipeline.checkpoints.reading import read_tensors
from pipeline.config import RunConfig
from pipeline.initialisation.check import check_start
from pipeline.runs.directory import check_run
from tests.conftest import swap_ids_of_two_tokens
from tests.marks import long
from tests.processes import TINY_RUN, kill_group, losses, run_command, start_command, user_error, wait_until

CONSTANT = ["--optimizer.lr_decay_style", "constant", "--optimizer.lr_warmup_steps"]
KINDS = ("weights", "exp_avg", "exp_avg_sq")


def argv(run_dir: Path, shard_folder: Path, *options: str) -> list[str]:
    """The command of a run at a constant rate, with dropout."""
    return [
        "train", *TINY_RUN, "--run_dir", str(run_dir), "--data.path", str(shard_folder), *CONSTANT, "0",
        "--training.precision", "fp32", "--model.layout", "sf:2sf", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """Ten steps, saved after 4, 8 and 10; to be read only."""
    run_dir = tmp_path_factory.mktemp("phases") / "parent"
    run_command("pipeline", *argv(run_dir, shard_folder))
    return run_dir


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def trainer_state(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((run_dir / f"checkpoints/step-{step:08d}/trainer.json").read_text())


def tensors(run_dir: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {kind: read_tensors(run_dir / f"checkpoints/step-{step:08d}", kind) for kind in KINDS}


def assert_equal(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    for kind in KINDS:
        assert one[kind].keys() == other[kind].keys()
        assert all(torch.equal(tensor, other[kind][name]) for name, tensor in one[kind].items()), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        ("1", ["--training.precision", "bf16"]),
        long("2", ["--training.zero_stage", "0"]),
        long("2", ["--training.tensor_model_parallel_size", "2", "--training.zero_stage", "3"]),
    ],
)
def test_moments_under_the_same_settings_continue_the_parent_to_the_bit(
    tmp_path: Path, shard_folder: Path, processes: str, options: list[str]
) -> None:
    common = [*options, "--processes", processes]
    whole, second = tmp_path / "whole", tmp_path / "second"
    run_command("pipeline", *argv(whole, shard_folder, *common))
    branch = ["--init.moments", "true", "--training.train_steps", "4", *common]
    run_command("pipeline", *argv(second, shard_folder, *branch, "--init.from_run", f"{whole}@4"))
    expected = losses(whole)
    assert losses(second) == {step: expected[step + 4] for step in range(1, 5)}
    assert_equal(tensors(second, 4), tensors(whole, 8))


@pytest.mark.long
def test_a_phase_of_a_phase_counts_all_that_was_before(tmp_path: Path, shard_folder: Path, parent: Path) -> None:
    branch = ["--init.moments", "true", "--training.train_steps", "4"]
    second, third = tmp_path / "second", tmp_path / "third"
    run_command("pipeline", *argv(second, shard_folder, *branch, "--init.from_run", f"{parent}@4"))
    # The same by the folder's name, and without naming the newest step.
    run_command("pipeline", *argv(third, shard_folder, *branch, "--init.from_run", str(second)))
    expected, found = losses(parent), losses(third)
    assert {step: found[step] for step in (1, 2)} == {1: expected[9], 2: expected[10]}
    state = trainer_state(third, 4)
    assert (state["step"], state["rows_consumed"], state["optimizer_steps"]) == (4, 12 * 16, 12)
    assert (state["parent"]["first_row"], state["parent"]["steps"], state["parent"]["rows"]) == (128, 8, 128)
    assert state["parent"]["tokens"] == 128 * 32


@pytest.mark.long
def test_weights_alone_begin_a_lineage_with_moments_of_its_own(
    tmp_path: Path, shard_folder: Path, parent: Path
) -> None:
    child = tmp_path / "child"
    ended = run_command("pipeline", *argv(child, shard_folder, "--init.from_run", f"{parent}@8"))
    assert f"starting from weights of step 8 of {parent}" in ended.stdout
    assert "rows: the order goes on at row 128, where the parent had come to" in ended.stdout
    # The step before any update has the parent's loss; Adam's count begins anew, so the next one has not.
    assert losses(child)[1] == losses(parent)[9]
    assert losses(child)[2] != losses(parent)[10]
    assert trainer_state(child, 4)["optimizer_steps"] == 4
    mine, theirs = record(child), record(parent)
    assert mine["lineage_id"] != theirs["lineage_id"]
    manifest = json.loads((parent / "checkpoints/step-00000008/manifest.json").read_text())
    assert mine["parent"] == {
        "lineage_id": theirs["lineage_id"], "run": "parent", "path": str(parent), "step": 8,
        "sha256": manifest["sha256"], "moments": False, "first_row": 128, "steps": 8, "rows": 128, "tokens": 4096,
    }  # fmt: skip
    # Another seed is another order: nothing of the parent's position is left.
    other = tmp_path / "other"
    options = ["--data.seed", "9", "--training.train_steps", "1", "--tracking.enabled", "true"]
    ended = run_command("pipeline", *argv(other, shard_folder, "--init.from_run", str(parent), *options), cwd=tmp_path)
    assert "rows: another data.seed than there: the order begins at row 0" in ended.stdout
    assert record(other)["parent"]["first_row"] == 0
    assert trainer_state(other, 1)["rows_consumed"] == 16
    tags = json.loads((other / "tracking.json").read_text())["tags"]
    assert {name: tags[f"narrowbert.parent.{name}"] for name in ("lineage", "run", "step", "moments")} == {
        "lineage": theirs["lineage_id"], "run": "parent", "step": 10, "moments": "false",
    }  # fmt: skip
    assert (tags["narrowbert.steps_before"], tags["narrowbert.tokens_before"]) == (10, 5120)


@pytest.mark.long
def test_a_child_resumes_without_its_parent_and_starts_again_only_with_it(
    tmp_path: Path, shard_folder: Path, parent: Path
) -> None:
    options = ["--init.moments", "true", "--training.train_steps", "150", "--processes", "2"]
    whole = tmp_path / "whole"
    run_command("pipeline", *argv(whole, shard_folder, *options, "--init.from_run", str(parent)))
    moved, run_dir = tmp_path / "moved", tmp_path / "killed"
    shutil.copytree(parent, moved)
    command = argv(run_dir, shard_folder, *options, "--init.from_run", str(moved))
    process = start_command("pipeline", *command, "--training.save_interval", "1000")
    wait_until((run_dir / "config.yaml").exists, process, "the configuration")
    kill_group(process)
    assert not list(run_dir.glob("checkpoints/step-*")), "killed too late to test anything"
    # It has begun at step 10: a checkpoint that has come since is not taken, and another in its place refused.
    shutil.copytree(moved / "checkpoints/step-00000010", moved / "checkpoints/step-00000012")
    (moved / "checkpoints/step-00000010").rename(tmp_path / "aside")
    line = user_error("pipeline", *command)
    assert f"has begun at step 10 of {moved}, which is gone or was changed" in line
    (tmp_path / "aside").rename(moved / "checkpoints/step-00000010")
    process = start_command("pipeline", *command)
    wait_until((run_dir / "checkpoints/latest").exists, process, "the first checkpoint")
    kill_group(process)
    assert not (run_dir / "DONE").exists(), "killed too late to test anything"
    shutil.rmtree(moved)
    (run_dir / "run.json").write_text("torn")
    spool = run_dir / "metrics.jsonl"
    saved = max(int(folder.name[5:]) for folder in run_dir.glob("checkpoints/step-*"))
    kept = [line for line in spool.read_text().splitlines(True) if json.loads(line)["step"] <= saved]
    spool.write_text("".join(kept))
    resumed = run_command("pipeline", *command)
    assert f"resuming from {run_dir}/checkpoints/step-" in resumed.stdout
    assert losses(run_dir) == losses(whole)
    assert record(run_dir)["parent"]["step"] == 10
    assert trainer_state(run_dir, 150)["rows_consumed"] == (10 + 150) * 16


@pytest.mark.long
def test_another_topology_and_layout_read_the_same_parameters(tmp_path: Path, shard_folder: Path) -> None:
    plain = ["--model.layout", "3sf", "--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    run_command("pipeline", *argv(tmp_path / "bert", shard_folder, *plain))
    narrow = [*plain, "--model.layout", "2sf:sf", "--init.from_run", f"{tmp_path / 'bert'}@4", "--init.moments", "true"]
    line = user_error("pipeline", *argv(tmp_path / "no", shard_folder, *narrow, "--model.layout", "sf:sf"))
    assert "model.layout 3sf there, sf:sf here" in line
    assert not (tmp_path / "no").exists()
    narrow += ["--training.train_steps", "6"]
    run_command("pipeline", *argv(tmp_path / "narrow", shard_folder, *narrow))
    # The same weights at the same rows, and their moments: a last layer at masked positions alone computes the same.
    theirs, mine = losses(tmp_path / "bert"), losses(tmp_path / "narrow")
    assert mine == pytest.approx({step: theirs[step + 4] for step in mine}, abs=2e-5)
    split = ["--processes", "2", "--training.tensor_model_parallel_size", "2", "--training.zero_stage", "3"]
    run_command("pipeline", *argv(tmp_path / "split", shard_folder, *narrow, *split))
    assert losses(tmp_path / "split") == pytest.approx(mine, abs=2e-5)


@pytest.mark.long
def test_positions_grow_by_repetition_and_the_base_of_rope_may_change(
    tmp_path: Path, shard_folder: Path, long_shard_folder: Path, parent: Path
) -> None:
    child = tmp_path / "child"
    longer = ["--model.max_position_embeddings", "80", "--training.save_interval", "1", "--training.train_steps", "1"]
    ended = run_command(
        "pipeline", *argv(child, long_shard_folder, *longer, "--init.from_run", str(parent), "--optimizer.lr", "1e-30")
    )
    assert "model.max_position_embeddings 32 there, 80 here, repeated in turn" in ended.stdout
    assert "rows: other shards than there: the order begins at row 0" in ended.stdout
    before, after = (
        read_tensors(folder, "weights")["embeddings.position_embeddings.weight"]
        for folder in (parent / "checkpoints/step-00000010", child / "checkpoints/step-00000001")
    )
    assert after.shape == (80, 32)
    torch.testing.assert_close(after, torch.cat([before, before, before])[:80], rtol=0, atol=1e-7)
    rope = ["--model.position", "rope", "--training.train_steps", "4"]
    run_command("pipeline", *argv(tmp_path / "rope", shard_folder, *rope))
    again = [*rope, "--init.from_run", str(tmp_path / "rope"), "--model.rotary_base", "160000"]
    ended = run_command("pipeline", *argv(tmp_path / "base", long_shard_folder, *again, *longer[:2]))
    assert "model.rotary_base 10000.0 there, 160000.0 here" in ended.stdout


@pytest.mark.long
def test_muon_takes_adams_first_moments_and_adam_none_of_muons(
    tmp_path: Path, shard_folder: Path, parent: Path
) -> None:
    muon = ["--init.from_run", str(parent), "--init.moments", "true", "--optimizer.type", "muon"]
    run_command("pipeline", *argv(tmp_path / "muon", shard_folder, *muon, "--training.save_interval", "2"))
    at_4, resumed = tmp_path / "muon/checkpoints/step-00000004", tmp_path / "resumed"
    matrix = "encoder.full_sublayers.0.linear_qkv.weight"
    assert matrix in read_tensors(at_4, "exp_avg")
    assert matrix not in read_tensors(at_4, "exp_avg_sq")
    assert "head.bias" in read_tensors(at_4, "exp_avg_sq")
    # A resume from the middle ends in the same bits.
    shutil.copytree(tmp_path / "muon", resumed)
    for late in resumed.glob("checkpoints/step-*"):
        if int(late.name.removeprefix("step-")) > 4:
            shutil.rmtree(late)
    (resumed / "DONE").unlink()
    run_command("pipeline", *argv(resumed, shard_folder, *muon, "--training.save_interval", "2"))
    assert_equal(tensors(tmp_path / "muon", 10), tensors(resumed, 10))

    back = ["--init.from_run", str(tmp_path / "muon")]
    assert "no second moments of the hidden matrices: leave out init.moments" in user_error(
        "pipeline", *argv(tmp_path / "back", shard_folder, *back, "--init.moments", "true")
    )
    run_command("pipeline", *argv(tmp_path / "back", shard_folder, *back))


@pytest.mark.slow
def test_what_does_not_fit_is_named_before_anything_is_written(
    tmp_path: Path, shard_folder: Path, parent: Path
) -> None:
    assert "model.activation gelu there, geglu here" in user_error(
        "pipeline",
        *argv(tmp_path / "child", shard_folder, "--init.from_run", str(parent), "--model.activation", "geglu"),
    )
    assert not (tmp_path / "child").exists()

    def refusal(*options: str) -> str:
        config = read_config(RunConfig, argv(tmp_path / "child", shard_folder, *options)[1:], "narrowbert train", "")
        with pytest.raises(UserError) as caught:
            check_start(config, check_run(config, 1))
        return str(caught.value)

    from_parent = ["--init.from_run", str(parent)]
    others = ["--model.ffn_hidden_size", "48", "--model.activation", "geglu", "--model.norm", "rmsnorm"]
    line = refusal(*from_parent, *others, "--model.layernorm_epsilon", "1e-6", "--model.layout", "2sf:sf")
    for text in (
        "model.layout sf:2sf there, 2sf:sf here", "model.ffn_hidden_size 64 there, 48 here",
        "model.activation gelu there, geglu here", "model.norm layernorm there, rmsnorm here",
        "model.layernorm_epsilon 1e-12 there, 1e-06 here",
    ):  # fmt: skip
        assert text in line
    line = refusal(*from_parent, "--model.layout", "2sf:sf", "--init.allow", "[layout]", "--model.narrow_kv", "shared")
    assert "model.narrow_kv per_layer there, shared here" in line
    assert "has no checkpoint of step 5: the newest are 10, 8, 4" in refusal("--init.from_run", f"{parent}@5")
    assert "there is no run" in refusal("--init.from_run", str(tmp_path / "nowhere"))
    assert "init.moments takes" in refusal("--init.moments", "true")
    assert "give one of them" in refusal(*from_parent, "--init.from_huggingface", "bert")
    assert "only [layout] may differ" in refusal(*from_parent, "--init.allow", "[bert.pooler.*]")
    assert "the same: leave it out" in refusal(*from_parent, "--init.allow", "[layout]")

    # Another vocabulary, and a damaged checkpoint, which is passed over in favour of the one before it.
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    swap_ids_of_two_tokens(copy / "tokenizer.json")
    assert "tokenizer with other ids for 2 of its" in refusal("--init.from_run", str(copy))
    shutil.copy(parent / "tokenizer.json", copy)
    damaged = next((copy / "checkpoints/step-00000010").glob("weights-*"))
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    once = ["--training.train_steps", "1", "--init.from_run", str(copy)]
    ended = run_command("pipeline", *argv(tmp_path / "older", shard_folder, *once))
    assert "starting from weights of step 8" in ended.stdout

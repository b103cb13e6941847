"""Saves that are killed, meet a full disk, or lose their writer; checkpoints that are damaged."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pipeline.checkpoints.commit import superseded
from pipeline.checkpoints.listing import list_checkpoints
from pipeline.checkpoints.reading import newest_checkpoint
from pipeline.data.order import ORDER_VERSION
from tests.faults.runs import argv, events
from tests.processes import Ranks, losses, run_command, run_ranks, user_error, wait_until


@pytest.mark.slow
def test_killed_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    (printed,) = run_ranks(1, lambda _: ["-m", "tests.faults.save", str(tmp_path / "checkpoints")])
    found = json.loads(printed.splitlines()[-1])
    by_event = [entry for entry in found if entry["kind"] == "event"]
    assert len(by_event) > 12, "most operations were not seen"
    assert by_event[-1]["exit"] == 0  # the one that reached the end
    assert all(entry["signal"] == signal.SIGKILL for entry in by_event[:-1])
    assert [entry["signal"] for entry in found if entry["kind"] == "write"] == [signal.SIGXFSZ] * 3
    newest = [entry["newest"] for entry in by_event]
    assert newest == sorted(newest), "a later kill lost what an earlier one had"
    assert {1, 2} == set(newest)
    (fenced,) = [entry for entry in found if entry["kind"] == "taken over"]
    assert (fenced["exit"], fenced["newest"], fenced["left"]) == (0, 1, ["latest", "step-00000001"])
    for entry in found:
        assert not entry["problems"], entry  # what is half-written never bears a checkpoint's name
        assert all(name == "latest" or name.startswith("step-") for name in entry["after"]), entry
        assert entry["latest"] in entry["left"] or entry["newest"] == 2, entry


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """A run of ten steps with checkpoints at 4, 8 and 10."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_command("pipeline", *argv(run_dir, shard_folder))
    return run_dir


@pytest.mark.slow
def test_any_damage_to_any_file_is_named_and_the_one_before_is_used(finished: Path, tmp_path: Path) -> None:
    assert list_checkpoints(finished).table.count("intact") == 3
    names = sorted(path.name for path in (finished / "checkpoints/step-00000010").iterdir())
    assert len(names) == 5  # three kinds of tensors, trainer.json, manifest.json
    for name in names:
        for damage in ("cut", "flipped", "missing", "longer"):
            run_dir = tmp_path / f"{name}-{damage}"
            shutil.copytree(finished, run_dir)
            path = run_dir / "checkpoints/step-00000010" / name
            content = bytearray(path.read_bytes())
            if damage == "missing":
                path.unlink()
            elif damage == "flipped":
                content[len(content) // 2] ^= 4
                path.write_bytes(content)
            else:
                path.write_bytes(content[:-1] if damage == "cut" else content + b"}")
            newest, problems = newest_checkpoint(run_dir / "checkpoints")
            assert newest == run_dir / "checkpoints/step-00000008", (name, damage)
            assert len(problems) == 1
            assert "step-00000010" in problems[0]
            assert name == "trainer.json" or name in problems[0] or name == "manifest.json"
            shown = list_checkpoints(run_dir)
            assert re.search(r"1 of 3 checkpoints .* \(step-00000010\)", shown.problem)
            assert shown.table.count("DAMAGED") == 1
            shutil.rmtree(run_dir)


@pytest.mark.long
def test_files_that_a_power_cut_has_emptied_are_made_anew_from_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    command = (run_dir / "config.yaml").read_text()
    data = json.loads((run_dir / "run.json").read_text())["data"]["path"]
    lineage = json.loads((run_dir / "run.json").read_text())["lineage_id"]
    for name in ("run.json", "config.yaml"):
        (run_dir / name).write_bytes(b"")
    line = user_error("pipeline", "checkpoints", str(run_dir))
    assert line.endswith("is damaged: give the run's training command again, which makes the file anew")
    assert "is finished" in run_command("pipeline", *argv(run_dir, Path(data))).stdout
    run_command("pipeline", "checkpoints", str(run_dir))
    assert json.loads((run_dir / "run.json").read_text())["order_version"] == ORDER_VERSION
    assert (run_dir / "config.yaml").read_text() == command.replace(str(finished), str(run_dir))
    # The same in a run that goes on, where another configuration is refused as ever.
    (run_dir / "DONE").unlink()
    shutil.rmtree(run_dir / "checkpoints/step-00000010")
    (run_dir / "run.json").write_text('{"lineage_id": "')
    assert "holds a run of another configuration" in user_error(
        "pipeline", *argv(run_dir, Path(data), "--data.seed", "1")
    )
    run_command("pipeline", *argv(run_dir, Path(data)))
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["lineage_id"], record["attempt"]) == (lineage, 2)
    assert losses(run_dir) == losses(finished)
    assert not events(run_dir, "not deterministic")


@pytest.mark.slow
def test_losses_that_differ_after_a_resume_are_reported_once(finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    shards = json.loads((run_dir / "run.json").read_text())["data"]["path"]
    (run_dir / "DONE").unlink()
    for step in (8, 10):
        shutil.rmtree(run_dir / f"checkpoints/step-{step:08d}")
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] > 4 and "train/loss" in record["metrics"]:
            record["metrics"]["train/loss"] += 1e-6
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    printed = run_command("pipeline", *argv(run_dir, Path(shards))).stdout
    assert printed.count("not deterministic") == 1
    (event,) = events(run_dir, "not deterministic")
    assert event["text"].startswith("train/loss of step 5 is ")


@pytest.mark.slow
def test_checkpoints_command_and_plain_safetensors(finished: Path, tmp_path: Path) -> None:
    shown = run_command("pipeline", "checkpoints", str(finished)).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["step", "4", "8", "10"]
    assert "has no run.json" in user_error("pipeline", "checkpoints", str(tmp_path))
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    (damaged / "checkpoints/step-00000008/trainer.json").unlink()
    line = user_error("pipeline", "checkpoints", str(damaged))
    assert "1 of 3 checkpoints" in line
    assert "(step-00000008): a resume passes them over" in line
    tensors = {}
    for path in (finished / "checkpoints/step-00000010").glob("weights-*"):
        tensors |= load_file(path)
    assert "embeddings.word_embeddings.weight" in tensors or any("word" in name for name in tensors)
    assert all(str(tensor.dtype) == "torch.float32" for tensor in tensors.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk_keeps_the_old_checkpoint_and_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path, shard_folder: Path
) -> None:
    run_dir = small_disk / "run"
    command = argv(run_dir, shard_folder, "--training.save_interval", "2", "--training.train_steps", "12")
    line = user_error_with_log("pipeline", *command)
    assert "No space left on device" in line
    newest, problems = newest_checkpoint(run_dir / "checkpoints")
    assert newest is not None
    assert not problems
    assert not list((run_dir / "checkpoints").glob(".tmp-step-*"))
    assert not (run_dir / "DONE").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    run_command("pipeline", *command)
    run_command("pipeline", *argv(tmp_path / "whole", shard_folder, *command[-4:]))
    assert losses(run_dir) == losses(tmp_path / "whole")


@pytest.mark.long
def test_a_disk_that_is_full_for_a_while_between_two_saves_costs_nothing(
    small_disk: Path, tmp_path: Path, shard_folder: Path
) -> None:
    run_dir = small_disk / "run"
    options = ["--training.save_interval", "1000", "--training.train_steps", "150"]
    record = tmp_path / "rows"
    faults = [{"do": "record", "file": str(record)}, {"do": "slow", "seconds": 0.03}]
    ranks = Ranks(1, *argv(run_dir, shard_folder, *options), faults=faults)
    rows = tmp_path / "rows-0"

    def reached(step: int) -> bool:
        return rows.exists() and len(rows.read_text().splitlines()) > step

    try:
        wait_until(lambda: reached(20), ranks.processes[0], "step 20")
        filler = small_disk / "filler"
        fill(filler)
        wait_until(lambda: reached(100), ranks.processes[0], "step 100")
        written = len((run_dir / "metrics.jsonl").read_text().splitlines())
        assert written < 80, "the disk was not full"
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    finally:
        (printed,) = ranks.end(0)
    assert "metrics are kept in memory" in printed
    assert "metrics.jsonl is written again" in printed
    run_command("pipeline", *argv(tmp_path / "whole", shard_folder, *options))
    assert losses(run_dir) == losses(tmp_path / "whole")
    assert len(losses(run_dir)) == 150
    assert [event["step"] for event in events(run_dir, "metrics not written")]


@pytest.mark.long
def test_a_disk_that_stays_full_is_told_as_what_could_not_be_saved(small_disk: Path, shard_folder: Path) -> None:
    run_dir = small_disk / "run"
    options = ["--training.save_interval", "1000", "--training.train_steps", "120"]
    ranks = Ranks(1, *argv(run_dir, shard_folder, *options), faults=[{"do": "slow", "seconds": 0.03}])
    try:
        wait_until((run_dir / "metrics.jsonl").exists, ranks.processes[0], "the first metrics")
        fill(small_disk / "filler")
    finally:
        (printed,) = ranks.end(2)
    assert "metrics are kept in memory" in printed
    assert "narrowbert: error: step 120 could not be saved (" in printed
    assert "Traceback" not in printed


def fill(path: Path) -> None:
    """Write until the disk takes no more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def user_error_with_log(package: str, *command: str) -> str:
    """The one line of an error after a training has begun."""
    ended = run_command(package, *command, expect=2)
    assert "Traceback" not in ended.stdout + ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("narrowbert: error: ")]
    return line


@pytest.mark.long
def test_a_save_that_one_rank_cannot_write_is_none_and_the_next_works(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    printed = Ranks(2, *argv(run_dir, shard_folder), faults=[{"do": "fail_write", "rank": 1, "steps": [4]}]).end(0)
    assert "step 4  NOT SAVED, the next save tries again: rank 1:" in printed[0]
    assert "No space left on device" in printed[0]
    assert [event["step"] for event in events(run_dir, "checkpoint failed")] == [4]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["latest", "step-00000008", "step-00000010"]
    assert "intact" in list_checkpoints(run_dir).table


@pytest.mark.long
def test_a_write_that_stalls_past_the_time_limit_ends_the_run_and_the_same_command_resumes(
    tmp_path: Path, shard_folder: Path
) -> None:
    run_dir = tmp_path / "run"
    command = argv(run_dir, shard_folder, "--training.save_interval", "10", "--training.train_steps", "500")
    faults = [
        {"do": "collective_limit", "seconds": 8},
        {"do": "stall_write", "rank": 1, "step": 20, "seconds": 12},
    ]
    for text in Ranks(2, *command, faults=faults).end(1):
        assert "the ranks lost each other while they saved step 20" in text
        assert "Traceback" not in text
    assert [event["step"] for event in events(run_dir, "checkpoint failed")] == [20]
    stop = {"do": "signal", "place": "in the forward pass", "step": 15, "number": signal.SIGTERM}
    assert "(step 10 of 500)" in Ranks(2, *command, faults=[stop]).end(85)[0]


@pytest.mark.long
def test_failed_saves_in_a_row_end_the_run_on_every_rank(tmp_path: Path, shard_folder: Path) -> None:
    run_dir = tmp_path / "run"
    command = argv(
        run_dir, shard_folder, "--training.save_interval", "2", "--training.train_steps", "1000",
        "--training.max_failed_saves", "3",
    )  # fmt: skip
    steps = [2, 4, 8, 10, 12]  # that of step 6 is between
    printed = Ranks(2, *command, faults=[{"do": "fail_write", "rank": 1, "steps": steps}]).end(2)
    for text in printed:
        assert "3 checkpoints in a row could not be written" in text
        assert "Traceback" not in text
    assert [event["step"] for event in events(run_dir, "checkpoint failed")] == steps
    assert (run_dir / "checkpoints/latest").read_text() == "step-00000006\n"


@given(
    st.lists(st.integers(1, 300), unique=True, min_size=1, max_size=30), st.integers(0, 5), st.integers(0, 20),
    st.integers(0, 29),
)  # fmt: skip
def test_retention_keeps_what_was_asked(steps: list[int], keep_last: int, keep_every: int, at: int) -> None:
    newest = steps[at % len(steps)]
    gone = set(superseded(steps, newest, keep_last, keep_every))
    kept = set(steps) - gone
    past = sorted(step for step in steps if step <= newest)
    assert kept >= set(past[-keep_last:]) if keep_last else not gone
    assert newest in kept
    assert kept >= {step for step in steps if step > newest}  # not ours to judge
    assert not keep_every or kept >= {step for step in steps if step % keep_every == 0}
    assert all(step < past[-keep_last] and not (keep_every and step % keep_every == 0) for step in gone)

"""``narrowbert train --profile``."""

import gzip
import json
from pathlib import Path

import pytest

from tests.faults.runs import argv
from tests.processes import losses, run_command


@pytest.mark.slow
def test_a_profile_has_the_steps_asked_for_and_changes_no_loss(tmp_path: Path, shard_folder: Path) -> None:
    run_command("pipeline", *argv(tmp_path / "plain", shard_folder))
    printed = run_command("pipeline", *argv(tmp_path / "run", shard_folder), "--profile", "3").stdout
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    folder = tmp_path / "run/logs/profile"
    assert sorted(path.name for path in folder.iterdir()) == ["steps-3-to-5.json.gz", "steps-3-to-5.txt"]
    assert f"3 steps are profiled: {folder / 'steps-3-to-5.txt'}" in printed
    events = json.loads(gzip.decompress((folder / "steps-3-to-5.json.gz").read_bytes()))["traceEvents"]
    assert (
        sum(event["name"].startswith("ProfilerStep#") for event in events if event.get("cat") == "user_annotation") == 3
    )
    assert "aten::addmm" in (folder / "steps-3-to-5.txt").read_text()


@pytest.mark.long
def test_a_run_that_ends_before_has_what_there_was(tmp_path: Path, shard_folder: Path) -> None:
    command = argv(tmp_path / "run", shard_folder, "--training.train_steps", "4", "--profile")
    error = run_command("pipeline", *command, "0", expect=2).stderr
    assert error == "narrowbert: error: profile is 0: give a positive number of steps\n"
    run_command("pipeline", *command, "100", "--processes", "2")
    names = sorted(path.name for path in (tmp_path / "run/logs/profile").iterdir())
    assert names == ["steps-3-to-4.json.gz", "steps-3-to-4.txt"]
    short = argv(tmp_path / "short", shard_folder, "--training.train_steps", "2", "--profile", "1")
    assert "nothing was profiled" in run_command("pipeline", *short).stdout

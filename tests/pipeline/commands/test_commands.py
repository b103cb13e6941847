"""The list of commands, their help, their version, and what is said about names they had before."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands import COMMANDS, module_of
from tests.processes import run_command, user_error


def test_every_command_has_a_module_and_a_sentence() -> None:
    modules = {path.stem for path in Path(importlib.import_module("pipeline.commands").__path__[0]).rglob("*.py")}
    assert modules - {"__init__"} == set(COMMANDS)
    for name, text in COMMANDS.items():
        assert callable(importlib.import_module(module_of(name)).run)
        assert text[0].isupper()
        assert text.endswith(".")


@pytest.mark.parametrize(
    ("package", "program"),
    [("pipeline", "narrowbert"), ("data_prep", "narrowbert-prep"), ("cluster", "narrowbert-submit")],
)
def test_version_is_that_of_the_installed_project(package: str, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", package, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{program} {importlib.metadata.version('narrowbert')}\n"


@pytest.mark.slow
def test_help_of_every_command_is_sentences() -> None:
    for name, text in COMMANDS.items():
        shown = " ".join(run_command("pipeline", name, "--help").stdout.split())
        assert text in shown, name


@pytest.mark.parametrize(
    ("argv", "new"),
    [
        (["export", "--from", "bert", "--output", "x"], "narrowbert convert MODEL_DIR --output DIR"),
        (["export", "--from=bert", "--output", "x"], "narrowbert convert MODEL_DIR --output DIR"),
        (["export", "--onnx", "model"], "narrowbert onnx MODEL_DIR"),
        (["export", "--onnx", "model", "--int8", "texts"], "narrowbert onnx MODEL_DIR"),
        (["finetune", "--model", "m", "--output_dir", "x"], "--output"),
    ],
)
def test_an_old_spelling_is_told_the_new_one(argv: list[str], new: str) -> None:
    assert f"is now {new}" in user_error("pipeline", *argv)


def test_an_old_key_of_a_file_is_told_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("output_dir: x\n")
    line = user_error("pipeline", "finetune", "--config", str(tmp_path / "task.yaml"))
    assert "the key 'output_dir' is now output" in line


def test_the_old_dry_run_is_told_the_new_one() -> None:
    assert "--dry-run is now --dry_run" in user_error("cluster", "train", "--dry-run")

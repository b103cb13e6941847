"""Standard streams that are closed, full or of another encoding, for all three commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from data_prep.contract.command_line import run_command
from tests.tiny_exports import write_folder

PLAN = ["pipeline", "plan", "--seq_length", "128", "--vocab_size", "1000", "--masked_per_row", "19"]


def run(argv: list[str], redirection: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a shell does with a redirection."""
    import os

    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {redirection}', "bash", sys.executable, "-P", "-m", *argv],
        input=stdin.encode(),
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("argv", [PLAN, ["data_prep", "shards", "--help"], ["cluster", "--version"]])
def test_a_full_disk_under_the_output_is_one_line(argv: list[str]) -> None:
    ended = run(argv, ">/dev/full")
    assert ended.returncode == 2
    line = ended.stderr.decode()
    assert line.count("\n") == 1, line
    assert "cannot write standard output (No space left on device)" in line


@pytest.mark.parametrize("redirection", ["| head -c 1", ">&-", "2>&-", "2>/dev/full"])
def test_streams_that_do_not_matter(redirection: str) -> None:
    ended = run(PLAN, redirection)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&-"])
def test_a_mistake_keeps_its_exit_code(redirection: str, tmp_path: Path) -> None:
    ended = run(["pipeline", "report", str(tmp_path / "nowhere")], redirection)
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr


def test_a_file_name_that_the_locale_cannot_write(tmp_path: Path) -> None:
    ended = run(["cluster", "status", str(tmp_path / "日本")], "", PYTHONIOENCODING="latin-1")
    assert ended.returncode == 2
    assert b"Traceback" not in ended.stderr


def test_a_working_folder_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command("narrowbert", len, ["plan"]) == 2
    assert capsys.readouterr().err == "narrowbert: error: the folder that you stand in is gone: cd to another one\n"


@pytest.mark.slow
def test_encode_needs_its_streams_and_writes_utf_8(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", AutoModelForSequenceClassification._model_mapping[_narrow_config()])
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "高い", "1": "niedrig–€"}
    (folder / "config.json").write_text(json.dumps(config))
    encode = ["pipeline", "encode", "--model", str(folder)]
    for redirection, expected in [
        ("<&-", "standard input is closed"),
        (">&-", "standard output is closed"),
        (">/dev/full", "cannot write standard output"),
    ]:
        ended = run(encode, redirection, "the cat\n")
        assert ended.returncode == 2
        assert ended.stderr.decode().count("\n") == 1
        assert expected in ended.stderr.decode()
    ended = run(encode, "", "the cat\n", PYTHONIOENCODING="latin-1")
    assert set(json.loads(ended.stdout.decode("utf-8"))["scores"]) == {"高い", "niedrig–€"}


def _narrow_config() -> type:
    from pipeline.export import NarrowBertConfig

    return NarrowBertConfig

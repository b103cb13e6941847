"""Every mistake a user can make with the commands: one line, exit code 2, nothing spoilt."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.processes import TINY_RUN, run_command, user_error

PREP = ["--num_workers", "1", "--seq_length", "32", "--vocabulary.size", "160", "--vocabulary.alphabet_size", "40"]


def test_missing_and_empty_corpus(tmp_path: Path, shard_folder: Path) -> None:
    tokenizer = ["--tokenizer", str(shard_folder / "tokenizer.json")]
    (tmp_path / "empty.jsonl").write_text("")
    for corpus, expected in [("nowhere/*.jsonl", "nowhere/*.jsonl"), ("empty.jsonl", "check --corpus.paths")]:
        for command in ("vocab", "shards"):
            argv = [command, "--corpus.paths", corpus, "--output", "out", *PREP]
            line = user_error("data_prep", *argv, *(tokenizer if command == "shards" else []), cwd=tmp_path)
            assert expected in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.layout", "2sx:1sf"], "character 3 (2s>>x<<:1sf)"),
        (["--model.layuot", "sf"], "did you mean 'model.layout'?"),
        (["--training.global_batch_size", "18"], "take a micro_batch_size of"),
        (["--model.max_position_embeddings", "16"], "max_position_embeddings of at least that"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--run_dir", ""], "no run_dir"),
        (["--processes", "0"], "processes"),
    ],
)
def test_wrong_run(tmp_path: Path, shard_folder: Path, options: list[str], expected: str) -> None:
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder), *options]
    assert expected in user_error("pipeline", *argv)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wrong_batch_with_several_processes_is_said_once(tmp_path: Path, shard_folder: Path) -> None:
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder)]
    line = user_error("pipeline", *argv, "--processes", "3")
    assert "with 3 processes take a global_batch_size of 12 or 24, or 1, 2, 4 processes" in line


@pytest.mark.slow
def test_run_directory_of_another_configuration_or_of_somebody_else(tmp_path: Path, shard_folder: Path) -> None:
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder)]
    run_command("pipeline", *argv)
    line = user_error("pipeline", *argv, "--optimizer.lr", "0.1")
    assert "optimizer.lr 0.0005 there, 0.1 here" in line
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    line = user_error("pipeline", *argv, "--run_dir", str(tmp_path / "mine"))
    assert "holds other files" in line
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.yaml", "", "config.yaml is damaged or cannot be read, and no checkpoint says what was in it"),
        ("config.yaml", "model: {", "config.yaml is damaged or cannot be read, and no checkpoint says what was in it"),
        ("run.json", "{}", "run.json is damaged: give the run's training command again"),
        ("run.json", "{", "run.json is damaged: give the run's training command again"),
    ],
)
def test_damaged_files_of_a_run(tmp_path: Path, shard_folder: Path, name: str, content: str, expected: str) -> None:
    for file, text in {"config.yaml": "run_dir: x\n", "run.json": "{}", name: content}.items():
        (tmp_path / file).write_text(text)
    train = ["train", *TINY_RUN, "--run_dir", str(tmp_path), "--data.path", str(shard_folder)]
    argv = train if name == "config.yaml" else ["checkpoints", str(tmp_path)]  # a training makes run.json anew
    assert expected in user_error("pipeline", *argv)


def test_run_dir_that_cannot_be_made(tmp_path: Path, shard_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "file/run"), "--data.path", str(shard_folder)]
    assert "cannot make run_dir" in user_error("pipeline", *argv, "--processes", "2")


@pytest.mark.slow
def test_corrupt_shard_is_named_by_training(tmp_path: Path, shard_folder: Path) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shard_folder, broken)
    tar = broken / "train-00000.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(broken)]
    for processes in ("1", "2"):
        line = user_error("pipeline", *argv, "--processes", processes)
        assert "train-00000.tar" in line
        assert "chunk 0" in line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "no command given"),
        (["trian"], "did you mean 'train'?"),
        (["plan"], "no shards at shards"),
        (["plan", "--seq_length", "128", "--vocab_size", "100", "--tokens_per_second", "-3"], "above 0"),
        (["plan", "--seq_length", "0", "--vocab_size", "100"], "do not fit together"),
        (["plan", "--seq_length", "128", "--vocab_size", "100", "--masked_per_row", "0"], "do not fit together"),
        (["plan", "--seq_length", "1024", "--vocab_size", "100"], "max_position_embeddings"),
        (["evaluate", "nowhere"], "nowhere has no intact checkpoint"),
        (["export", "nowhere", "--output", "x"], "nowhere has no intact checkpoint"),
        (["export", "nowhere"], "--output"),
        (["report", "nowhere"], "nowhere is no run directory"),
        (["sync", "nowhere"], "nowhere is no run directory"),
    ],
)
def test_wrong_commands(tmp_path: Path, argv: list[str], expected: str) -> None:
    assert expected in user_error("pipeline", *argv, cwd=tmp_path)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ended = run_command("pipeline", "report", "nowhere", "--debug", cwd=tmp_path, expect=1)
    assert "Traceback" in ended.stderr


def test_a_valid_corpus_passes(tmp_path: Path) -> None:
    # The counterpart of the refusals above: the same options with a corpus that exists.
    write_corpus(tmp_path / "corpus.jsonl")
    run_command("data_prep", "vocab", "--corpus.paths", "corpus.jsonl", "--output", "out", *PREP, cwd=tmp_path)
    assert (tmp_path / "out.tokenizer.json").exists()

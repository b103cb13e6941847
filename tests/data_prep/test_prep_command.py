import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import data_prep.__main__ as command
from data_prep.contract.shards import open_shards

NARROWBERT_PREP = str(Path(sys.executable).with_name("narrowbert-prep"))


def prep(*arguments):
    return subprocess.run([NARROWBERT_PREP, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_own_corpus_from_text_to_verified_shards(corpus_folder, tmp_path):
    settings = tmp_path / "prep.yaml"
    settings.write_text("vocabulary: {size: 200}\nseq_length: 32\nchunk_rows: 16\nrows_per_shard: 64\n")
    options = ["--config", settings, "--corpus.paths", f"[{corpus_folder}/*.jsonl, {corpus_folder}/*.txt]"]
    options += ["--output", tmp_path / "shards", "--validation_fraction", "0.2", "--mask.variants=2"]
    vocab = prep("vocab", *options)
    assert (vocab.returncode, vocab.stderr) == (0, "")
    assert "shards.tokenizer.json: 166 entries" in vocab.stdout
    shards = prep("shards", *options, "--num_workers", "2")
    assert (shards.returncode, shards.stderr) == (0, "")
    root_hash = open_shards(tmp_path / "shards").root_hash
    assert root_hash in shards.stdout
    again = prep("shards", *options)
    assert again.returncode == 0
    assert "complete already" in again.stdout
    verified = prep("verify", tmp_path / "shards")
    assert verified.returncode == 0
    assert verified.stdout.count("\n") == 1
    assert root_hash in verified.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command given"),
        (["shard"], "did you mean 'shards'"),
        (["shards", "--seed", "1"], "output"),
        (["shards", "--output", "{tmp}/s", "--seq_lenght", "64"], "did you mean 'seq_length'"),
        (["shards", "--output", "{tmp}/s", "--seq_length", "many"], "seq_length"),
        (["shards", "--output", "{tmp}/s", "--seq_length", "3"], "seq_length is 3"),
        (["shards", "--output", "{tmp}/s"], "narrowbert-prep vocab"),
        (["vocab", "--output", "{tmp}/s", "--corpus.paths", "{tmp}/none.txt"], "none.txt does not exist"),
        (["vocab", "--output", "{tmp}/s", "--corpus.paths", "{tmp}/empty.txt"], "no text"),
        (["vocab", "--output", "{tmp}/s", "--corpus.paths", "{tmp}/bad.txt"], "(rejected: 1 undecodable)"),
        (["vocab", "--output", "{tmp}/empty.txt/s", "--corpus.paths", "{tmp}/good.txt"], "cannot be written"),
        (["verify"], "verify was given nothing"),
        (["verify", "{tmp}/none"], "no shard folder"),
        (["verify", "{tmp}"], "no manifest.json"),
        (["inspect", "{tmp}/none"], "no shard folder"),
        (["inspect", "{tmp}", "--split", "test"], "--split"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "bad.txt").write_bytes("café ".encode() + b"\xff")
    (tmp_path / "good.txt").write_text("a b c")
    finished = prep(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert finished.returncode == 2
    assert finished.stdout.startswith("usage: narrowbert-prep" if arguments == ["verify"] else "")
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert message in finished.stderr


def test_a_flipped_byte_gives_one_line_and_exit_code_2(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    offset, _ = open_shards(folder).indexes["train"].place(0)
    path = folder / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[offset + 2000] ^= 4
    path.write_bytes(data)
    for arguments in (("verify", folder), ("inspect", folder)):
        finished = prep(*arguments)
        assert finished.returncode == 2
        assert finished.stderr.count("\n") == 1
        assert "train-00000.tar, chunk 0" in finished.stderr


def test_inspect_marks_the_masks(tiny_shards, capsys):
    assert command.main(["inspect", str(tiny_shards), "--rows", "20", "--split", "train", "--variant", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("masked\n") == 20
    assert out.count("->[MASK]}") > 50
    assert " | " in out
    arrays = open_shards(tiny_shards).split("train").chunk(0)
    first = f"{arrays['num_masked'][0, 2]} masked"
    assert first in out.splitlines()[3]
    assert command.main(["inspect", str(tiny_shards), "--variant", "3"]) == 2
    assert "variants 0 to 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vocab", "shards", "verify", "inspect"])
def test_help_describes_every_option(name, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([name, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: narrowbert-prep {name}" in out
    if name == "shards":
        assert "Tokens per row" in out
        assert "Independent maskings" in out


def test_the_preset_is_read_by_both_commands(capsys):
    preset = Path(__file__).parents[2] / "configs" / "prep" / "quickstart.yaml"
    for name in ("vocab", "shards"):
        with pytest.raises(SystemExit):
            command.main([name, "--config", str(preset), "--print_config"])
        assert "size: 8192" in capsys.readouterr().out

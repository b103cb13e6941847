"""Rows with other masks: the tars that the corpus would have given."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.config import MaskConfig, PrepConfig
from data_prep.contract.shards import open_shards
from data_prep.reuse.remask import PARENT
from data_prep.stages.build import build_shards
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.shard_folders import as_schema_1, make_folder

ARTIFACT = Path(__file__).parents[2] / "compatibility" / "artifacts" / "shards"


def contents(folder: str | Path, pattern: str = "*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob(pattern))}


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        (["--mask.probability", "0.3"], MaskConfig(probability=0.3, variants=3)),
        (["--mask.stored", "false", "--mask.probability", "0.2"],
         MaskConfig(stored=False, probability=0.2, variants=3)),
        (
            ["--mask.unit", "word", "--mask.variants", "2", "--mask.per_row", "7"],
            MaskConfig(unit="word", variants=2, per_row=7),
        ),
        (["--mask.unit", "span", "--mask.mask_fraction", "1", "--mask.random_fraction", "0"],
         MaskConfig(unit="span", mask_fraction=1.0, random_fraction=0.0, variants=3)),
    ],
)  # fmt: skip
def test_tars_are_those_of_the_corpus(
    tiny_config: PrepConfig, tiny_shards: Path, tmp_path: Path, options: list[str], mask: MaskConfig
) -> None:
    direct = replace(tiny_config, output=str(tmp_path / "direct"), mask=mask)
    build_shards(direct, no_progress)
    new = tmp_path / "new"
    assert main(["remask", str(tiny_shards), "--output", str(new), "--num_workers", "1", *options]) == 0
    assert contents(new, "*.tar") == contents(direct.output, "*.tar") != contents(tiny_shards, "*.tar")
    for name in ("inputs.jsonl", "rejects.jsonl.gz", "tokenizer.json", "train.index.safetensors"):
        assert (new / name).read_bytes() == Path(direct.output, name).read_bytes(), name
    assert verify(new).problems == ()
    manifest, expected = open_shards(new).manifest, open_shards(direct.output).manifest
    assert manifest.pop("parent") == {"root_hash": open_shards(tiny_shards).root_hash, "made_by": "remask"}
    del manifest["root_hash"], expected["root_hash"]
    assert manifest == expected
    assert f"{manifest['masked_per_row']} tokens each" in (new / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct", "new"]


def test_worker_count_changes_no_byte_and_another_seed_only_the_masks(tiny_shards: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        options = ["--seed", "9", "--num_workers", workers]
        assert main(["remask", str(tiny_shards), "--output", str(tmp_path / workers), *options]) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    old, new = (open_shards(folder).split("train").chunk(2) for folder in (tiny_shards, tmp_path / "1"))
    for name, field in old.items():
        same = name in ("input_ids", "lengths", "sequence_ids", "boundary_offsets", "boundary_positions", "num_masked")
        assert np.array_equal(field, new[name]) == same, name
    # Rows whose masks are not stored get them.
    for name, parent, stored in (("bare", "1", "false"), ("stored", "bare", "true")):
        options = ["--mask.stored", stored, "--num_workers", "1"]
        assert main(["remask", str(tmp_path / parent), "--output", str(tmp_path / name), *options]) == 0
    assert contents(tmp_path / "stored", "*.tar") == contents(tmp_path / "1", "*.tar")
    # The masks of a remasked folder are its own: remasked as it is, it stays.
    assert main(["remask", str(tmp_path / "1"), "--output", str(tmp_path / "again"), "--num_workers", "1"]) == 0
    assert contents(tmp_path / "again", "*.tar") == contents(tmp_path / "1", "*.tar")


def test_folder_of_schema_1(tiny_shards: Path, tmp_path: Path) -> None:
    assert main(["remask", str(ARTIFACT), "--output", str(tmp_path / "same"), "--num_workers", "1"]) == 0
    assert contents(tmp_path / "same", "*.tar") == contents(ARTIFACT, "*.tar")
    assert verify(tmp_path / "same").problems == ()
    options = ["--mask.variants", "4", "--num_workers", "1"]
    copy = Path(shutil.copytree(tiny_shards, tmp_path / "old"))
    inputs = list(map(json.loads, (copy / "inputs.jsonl").read_text().splitlines()))
    old = as_schema_1(copy, lambda manifest: manifest.update(inputs=inputs))
    for name, parent in (("of1", old), ("of2", tiny_shards)):
        assert main(["remask", str(parent), "--output", str(tmp_path / name), *options]) == 0
    assert contents(tmp_path / "of1", "*.tar") == contents(tmp_path / "of2", "*.tar")
    assert json.loads((tmp_path / "of1" / "manifest.json").read_text())["schema_version"] == 2


def test_killed_run_goes_on_where_it_stood(tiny_shards: Path, tmp_path: Path) -> None:
    options = ["--mask.variants", "200", "--num_workers", "1"]
    command = [sys.executable, "-m", "data_prep", "remask", str(tiny_shards), "--output", str(tmp_path / "new")]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "new.partial" / "records"
    deadline = time.monotonic() + 60
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = records / "000000.json"
    done = first.stat().st_mtime_ns
    tar = tmp_path / "new.partial" / "shards" / "train-00000.tar"
    before = tar.stat().st_ino
    assert main(["remask", str(tiny_shards), "--output", str(tmp_path / "new"), *options]) == 0
    assert (tmp_path / "new" / "train-00000.tar").stat().st_ino == before, f"made again after {done}"
    assert main(["remask", str(tiny_shards), "--output", str(tmp_path / "whole"), *options]) == 0
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
    (tmp_path / "new.partial").mkdir()  # as a kill in the clean-up leaves it
    shutil.copytree(tmp_path / "whole", tmp_path / "new.partial" / "shards")
    assert main(["remask", str(tiny_shards), "--output", str(tmp_path / "new"), *options]) == 0, "it is complete"


def test_work_of_which_nothing_is_finished_gives_way_to_other_masks(tiny_shards: Path, tmp_path: Path) -> None:
    work = tmp_path / "new.partial"
    for name in ("records", "shards"):
        (work / name).mkdir(parents=True)
    (work / PARENT).write_text("{}")
    assert main(["remask", str(tiny_shards), "--output", str(tmp_path / "new"), "--num_workers", "1"]) == 0


def test_what_cannot_be_is_one_line(tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(parent: Path, *options: str, output: str = "new") -> str:
        assert main(["remask", str(parent), "--output", str(tmp_path / output), "--num_workers", "1", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "does not say how it was made" in error(make_folder(tmp_path / "bare"))
    assert "31 masked tokens a row of 32: expected 1 to 30" in error(tiny_shards, "--mask.per_row", "31")
    assert "mask.mask_fraction" in error(tiny_shards, "--mask.mask_fraction", "0.95")
    assert "--seq_length" in error(tiny_shards, "--seq_length", "64")
    assert "no shard folder" in error(tmp_path / "nowhere")
    assert not (tmp_path / "new.partial").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert "is no shard folder" in error(tiny_shards, output="taken")
    shutil.copytree(tiny_shards, tmp_path / "others")
    assert "holds other shards" in error(tiny_shards, output="others")
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "half.partial" / "plan.json").write_text("{}")
    assert "unfinished work of another command" in error(tiny_shards, output="half")
    assert main(["remask", "--seed", "3"]) == 2
    assert "needs the shard folder first" in capsys.readouterr().err
    damaged = Path(shutil.copytree(tiny_shards, tmp_path / "damaged"))
    (damaged / "rejects.jsonl.gz").unlink()
    assert "rejects.jsonl.gz is missing" in error(damaged)
    shutil.copyfile(tiny_shards / "rejects.jsonl.gz", damaged / "rejects.jsonl.gz")
    inputs = bytearray((damaged / "inputs.jsonl").read_bytes())
    inputs[10] ^= 1
    (damaged / "inputs.jsonl").write_bytes(inputs)
    assert "inputs.jsonl is damaged" in error(damaged)
    tar = bytearray((damaged / "train-00001.tar").read_bytes())
    tar[3000] ^= 1
    (damaged / "train-00001.tar").write_bytes(tar)
    assert "train-00001.tar" in error(damaged, output="other")

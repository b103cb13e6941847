"""Killed, damaged, short of descriptors or of room: nothing finished is lost, and the same bytes come of it."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.config import CorpusConfig, DuplicatesConfig, PrepConfig
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.shards import open_folder
from data_prep.corpus import partitions as corpus_partitions
from data_prep.stages.build import build_shards, run_task
from data_prep.stages.records import STAGES, committed, task_record
from data_prep.stages.work_folder import read_plan
from tests.data_prep.conftest import NoProgress, no_progress
from tests.data_prep.stages.test_stages import bytes_of, corpus_of, sentences


@pytest.fixture(scope="module")
def several_tasks(tiny_config: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """A corpus of four map tasks with exact and near-duplicates between them."""
    place = tmp_path_factory.mktemp("several")
    for number in range(4):
        texts = sentences(25, number)
        corpus_of(place / "corpus", [*texts, *sentences(2, 1), texts[0] + " once more"], f"part{number}.jsonl")
    return replace(
        tiny_config,
        corpus=CorpusConfig(paths=(str(place / "corpus"),)),
        duplicates=DuplicatesConfig(near_threshold=0.7),
        output=str(place / "shards"),
        num_workers=1,
    )


@pytest.fixture(scope="module")
def expected(several_tasks: PrepConfig) -> dict[str, bytes]:
    """The bytes that an undisturbed run makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_partitions, "MIN_PARTITION_BYTES", 5_000)
        found = build_shards(several_tasks, no_progress)
    assert found.rejects.keys() == {"duplicate", "near_duplicate"}
    return bytes_of(several_tasks.output)


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_partitions, "MIN_PARTITION_BYTES", 5_000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    """Of the right size, its middle never written: what a power cut leaves."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10] ^= 1
    path.write_bytes(content)


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [emptied, cut_short, zeroed, gone]
FILES = [
    "map/000001/record.json", "map/000001/tokens.bin", "map/000001/documents.safetensors", "map/000001/keys.bin",
    "map/000001/bands.bin", "map/000001/signatures.bin", "map/000001/rejects.jsonl.gz",
    "duplicates/000000/dropped.bin", "duplicates/000000/names.bin", "duplicates/000001/pairs.bin",
    "survivors/000000/dropped.bin", "survivors/000000/names.bin",
    "pack/000002/rows.bin", "pack/000002/boundaries.bin", "pack/000002/rejects.jsonl.gz", "order/000000/train.bin",
    "order/000000/record.json", "reduce/000000/record.json", "shards/train-00000.tar",
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "damage"),
    # A finished shard is looked at by `verify` alone, byte by byte.
    [(file, damage) for file in FILES for damage in DAMAGES if not (file.startswith("shards/") and damage == zeroed)]
    + [("map/000001/tokens.bin", altered), ("pack/000002/rows.bin", altered)],
)
def test_what_a_power_cut_damages_is_made_again(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    stage = "reduce" if file.startswith("shards/") else file.split("/")[0]
    for before in STAGES[1 : STAGES.index(stage) + 1]:
        run_task(config, before, None, no_progress)
    damage(tmp_path / "shards.partial" / file)
    progress = NoProgress()
    build_shards(config, progress)
    assert bytes_of(config.output) == expected
    assert not any("starting anew" in note for note in progress.notes)
    assert not list(tmp_path.glob("shards.partial*"))


def test_damage_is_named_and_a_single_task_mends_it(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    for stage in STAGES[: STAGES.index("survivors") + 1]:
        run_task(config, stage, None, no_progress)
    zeroed(tmp_path / "shards.partial" / "map/000003/tokens.bin")
    progress = NoProgress()
    run_task(config, "pack", 3, progress)
    assert any("map task 3" in note and "tokens.bin has another hash" in note for note in progress.notes)
    build_shards(config, no_progress)
    assert bytes_of(config.output) == expected


def test_two_processes_of_one_number_do_not_share_a_temporary_folder(several_tasks: PrepConfig, tmp_path: Path) -> None:
    """Process ids repeat between machines and containers."""
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    plan, _ = read_plan(config)
    with committed(plan, "map", 0, {"by": "first"}) as first:
        (first / "content").write_text("whole")
        with committed(plan, "map", 0, {"by": "second"}) as second:
            assert second != first
            (second / "content").write_text("whole")
        assert (first / "content").read_text() == "whole"
    record = task_record(plan, "map", 0)
    assert record is not None
    assert record["by"] == "second", "the first result stands"
    assert [path.name for path in (plan.work / "map").iterdir()] == ["000000"]


def killed_at(config: PrepConfig, moment: int, events: tuple[str, ...]) -> bool:
    """Run in a forked process that kills itself before its ``moment``-th event; whether it lived that long."""
    child = os.fork()
    if not child:
        left = moment

        def count(event: str, _: tuple) -> None:
            nonlocal left
            if event in events:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            build_shards(config, no_progress)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_killed_at_every_commit_and_in_the_clean_up(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Each run goes on from where the one before was killed, one event further; then every event of a fresh run."""
    going_on = replace(several_tasks, output=str(tmp_path / "shards"))
    kills = 0
    while killed_at(going_on, 3, ("os.rename", "shutil.rmtree")):
        kills += 1
        assert kills < 100
    assert kills > 5
    assert bytes_of(going_on.output) == expected
    for moment in range(1_000):
        config = replace(several_tasks, output=str(tmp_path / f"fresh{moment}"))
        if not killed_at(config, moment, ("os.rename",)):
            break
        build_shards(config, no_progress)
        assert bytes_of(config.output) == expected, moment
        shutil.rmtree(config.output)
    assert moment > 15


def test_killed_in_the_clean_up_the_folder_is_complete(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    for stage in STAGES[:-1]:
        run_task(config, stage, None, no_progress)
    assert killed_at(config, 20, ("os.remove",))
    assert bytes_of(config.output) == expected
    assert (tmp_path / "shards.partial").exists()
    assert build_shards(config, no_progress).already_there
    assert not (tmp_path / "shards.partial").exists(), "the same command clears away what was left"


def test_work_of_another_configuration_is_set_aside_and_taken_up_again(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    run_task(config, "map", None, no_progress)
    progress = NoProgress()
    run_task(replace(config, seed=5), "plan", None, progress)
    (aside,) = tmp_path.glob("shards.partial.*")
    assert str(aside) in progress.notes[0]
    assert (aside / "map" / "000000" / "record.json").exists()
    run_task(replace(config, seed=5), "map", 0, no_progress)
    progress = NoProgress()
    build_shards(config, progress)
    assert any("going on from there" in note for note in progress.notes)
    assert bytes_of(config.output) == expected


def test_an_unreadable_input_loses_nothing_that_is_done(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    run_task(config, "map", 0, no_progress)

    def failing(*_: object) -> None:
        raise UserError("cannot read the corpus file: Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.stages.texts.reading.read_partition", failing)
        with pytest.raises(UserError, match="Stale file handle"):
            build_shards(config, no_progress)
    done = (tmp_path / "shards.partial/map/000000/record.json").stat().st_mtime_ns
    run_task(config, "map", None, no_progress)
    assert (tmp_path / "shards.partial/map/000000/record.json").stat().st_mtime_ns == done
    build_shards(config, no_progress)
    assert bytes_of(config.output) == expected


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=250k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        config = replace(several_tasks, output=str(place / "shards"))
        with pytest.raises(UserError, match=r"No space left on device; the same command goes on from here"):
            build_shards(config, no_progress)
        settings = tmp_path / "prep.yaml"
        settings.write_text(json.dumps(config_as_dict(config)))
        codes = (main(["shards", "--config", str(settings), "--task", stage]) for stage in STAGES[1:-1])
        assert next(code for code in codes if code) == 2
        assert "No space left on device; the same command goes on" in capsys.readouterr().err
        done = {path: path.stat().st_mtime_ns for path in (place / "shards.partial").glob("map/0*/record.json")}
        assert done
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        build_shards(config, no_progress)
        assert bytes_of(config.output) == expected
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


# The limit counts what the process has open already, so a fresh one takes it.
WITH_FEW_DESCRIPTORS = """
import resource, sys
from data_prep.__main__ import main
from data_prep.corpus import partitions
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
partitions.MIN_PARTITION_BYTES = 300
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_many_tasks_and_shards_need_few_descriptors(tiny_config: PrepConfig, tmp_path: Path) -> None:
    for number in range(400):
        corpus_of(tmp_path / "corpus", sentences(1, number, 50), f"{number}.jsonl")
    config = replace(
        tiny_config,
        corpus=CorpusConfig(paths=(str(tmp_path / "corpus"),)),
        output=str(tmp_path / "shards"),
        duplicates=DuplicatesConfig(near_threshold=0.9),
        rows_per_shard=2,
        chunk_rows=1,
        keep_documents=True,
        num_workers=1,
    )
    settings = tmp_path / "prep.yaml"
    settings.write_text(json.dumps(config_as_dict(config)))
    child = [sys.executable, "-P", "-c", WITH_FEW_DESCRIPTORS, "shards", "--config", str(settings)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert open_folder(tmp_path / "shards").manifest["documents"]["parts"] >= 300, "map tasks"
    assert len(list((tmp_path / "shards").glob("train-*.tar"))) > 300


def test_rejects_of_all_tasks_are_one_gzip_file(expected: dict[str, bytes]) -> None:
    lines = [json.loads(line) for line in gzip.decompress(expected["rejects.jsonl.gz"]).splitlines()]
    assert {line["reason"] for line in lines} == {"duplicate", "near_duplicate"}
    assert all(line["detail"].startswith("of part") for line in lines)

"""Any number of workers finds the same, and all parts together find what the whole check finds."""

import json

import numpy as np
import pytest

from data_prep import __main__ as command
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_writing import write_manifest, write_shard
from data_prep.contract.shards import open_shards
from data_prep.verification import sequence_ids
from data_prep.verification.folder import verify
from tests.data_prep.shard_folders import as_schema_1, entries_of, make_folder


def damaged_folder(folder):
    """A folder with a problem of every kind: in the folder, in shards, and one sequence id twice in two splits."""
    make_folder(folder, files={"rejects": {"name": "rejects.jsonl.gz", "size": 1, "sha256": "0" * 64}})
    split, entries = open_shards(folder).split("validation"), entries_of(folder)
    chunks = [{k: np.array(v) for k, v in split.chunk(i).items()} for i in split.index.chunks(0)]
    chunks[0]["sequence_ids"][3] = 4  # that of a row of train-00000.tar
    chunks[0]["lengths"][2] = 33
    entries["validation"][0] = write_shard(folder, "validation", 0, chunks)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["rows"] += 1
    write_manifest(folder, manifest, entries)
    (folder / "train-77777.tar").write_bytes(b"")
    (folder / "train-00001.tar").unlink()
    content = bytearray((folder / "train-00002.tar").read_bytes())
    content[5000] ^= 1
    (folder / "train-00002.tar").write_bytes(content)
    return folder


@pytest.mark.parametrize("schema", [1, 2])
def test_two_workers_find_the_same_in_the_same_order(tmp_path, schema):
    folder = damaged_folder(tmp_path / "shards")
    if schema == 1:
        as_schema_1(folder)
    found = verify(folder)
    said = [problem.replace(str(folder), "") for problem in found.problems]
    expected = (
        "/rejects.jsonl.gz is missing",
        "/train-77777.tar is not in the manifest",
        "shard /train-00001.tar is missing",
        "shard /train-00002.tar, chunk 1: ",
        "shard /validation-00000.tar, chunk 0: row 2 has a length out of range",
        "/manifest.json: the row counts of split train",
        ": sequence ids are not unique",
    )
    assert len(said) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(said, expected, strict=True)), said
    assert verify(folder, num_workers=2) == found


def test_parts_are_the_whole(tmp_path):
    folder = damaged_folder(tmp_path / "shards")
    whole = verify(folder)
    for count in (2, 3, 20):
        parts = [verify(folder, part=(number, count)) for number in range(1, count + 1)]
        assert sorted(problem for part in parts for problem in part.problems) == sorted(whole.problems)
        for what in ("shards", "chunks", "rows", "size"):
            assert sum(getattr(part, what) for part in parts) == getattr(whole, what)
        assert parts[1].summary.startswith(f"{folder}: part 2 of {count}: ")


@pytest.mark.parametrize("part", [(1, 1), (1, 3)])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_sequence_ids_are_compared_in_passes_where_they_are_many(tmp_path, monkeypatch, num_workers, part):
    monkeypatch.setattr(sequence_ids.SequenceIds.__init__, "__defaults__", (1,))
    sound = make_folder(tmp_path / "sound")  # ids of two pages
    assert verify(sound, num_workers=num_workers, part=part).problems == ()
    split, entries = open_shards(sound).split("validation"), entries_of(sound)
    chunks = [{k: np.array(v) for k, v in split.chunk(i).items()} for i in split.index.chunks(0)]
    chunks[1]["sequence_ids"][0] = chunks[0]["sequence_ids"][0]
    entries["validation"][0] = write_shard(sound, "validation", 0, chunks)
    write_manifest(sound, json.loads((sound / "manifest.json").read_text()), entries)
    assert [p[-7:] for p in verify(sound, num_workers=num_workers, part=part).problems] == [" unique"]


def test_the_command_takes_workers_and_a_part(tmp_path, capsys):
    folder = str(make_folder(tmp_path / "shards"))
    assert command.main(["verify", folder, "--num_workers", "1", "--part", "2/2"]) == 0
    assert "part 2 of 2: 2 shards" in capsys.readouterr().out
    for options, message in (
        (["--part", "3/2"], "part 3/2: expected 1/2 to 2/2"),
        (["--part", "0/2"], "part 0/2: expected 1/2 to 2/2"),
        (["--part", "2"], "--part 2: expected two numbers such as 3/8"),
        (["--part", "1/0"], "--part 1/0: expected two numbers"),
        (["--num_workers", "-1"], "num_workers is -1: expected 0 to 1024"),
    ):
        assert command.main(["verify", folder, *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="part 2/1"):
        verify(folder, part=(2, 1))

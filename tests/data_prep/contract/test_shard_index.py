"""The index of a split: what is written is what is read, by others too, and nothing else is accepted."""

import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import SPLITS, index_name
from data_prep.contract.shard_index import index_of, map_index, write_index
from data_prep.contract.shards import open_shards
from data_prep.verification.folder import verify
from tests.data_prep.shard_folders import as_schema_1, entries_of, make_folder

chunks = st.builds(
    lambda offset, length, rows, xxh3: {"offset": offset, "length": length, "rows": rows, "xxh3": xxh3.hex()},
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
)
shards = st.builds(
    lambda size, sha256, chunks: {
        "size": size,
        "sha256": sha256.hex(),
        "rows": sum(chunk["rows"] for chunk in chunks),
        "chunks": chunks,
    },
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(chunks, max_size=4),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


@given(st.lists(shards, max_size=5))
def test_what_is_written_is_what_is_read(scratch, entries):
    entries = [{"name": f"train-{number:05d}.tar", **entry} for number, entry in enumerate(entries)]
    path = scratch / index_name("train")
    path.unlink(missing_ok=True)  # an earlier example may still be mapped
    with path.open("wb") as stream:
        write_index(index_of("train", iter(entries)), stream)
    for index in (map_index("train", path), pickle.loads(pickle.dumps(map_index("train", path)))):
        assert index.adds_up()
        assert (index.num_shards, index.num_chunks) == (len(entries), sum(len(e["chunks"]) for e in entries))
        for shard, entry in enumerate(entries):
            assert index.file(shard) == {key: entry[key] for key in ("name", "size", "sha256")}
            assert index.shard_rows[shard] == entry["rows"]
            for number, chunk in zip(index.chunks(shard), entry["chunks"], strict=True):
                assert index.shard_of(number) == shard
                assert index.place(number) == (chunk["offset"], chunk["length"])
                assert (index.chunk_rows[number], index.chunk_hash(number)) == (chunk["rows"], chunk["xxh3"])
        assert all(column.ctypes.data % column.itemsize == 0 for column in index.columns.values()), "aligned"
    theirs = load_file(path)
    assert set(theirs) == set(index.columns)
    for name, column in index.columns.items():
        np.testing.assert_array_equal(theirs[name], column)


def test_entries_come_in_the_order_of_their_numbers(tmp_path):
    entries = entries_of(make_folder(tmp_path / "made"))["train"]
    with pytest.raises(ValueError, match=r"train-00001\.tar in place of train-00000\.tar"):
        index_of("train", reversed(entries[:2]))


def test_columns_of_a_file_are_checked(tmp_path):
    make_folder(tmp_path / "made")
    sound = load_file(tmp_path / "made" / index_name("train"))
    for name, column in sound.items():
        for wrong in (None, column[:-1], column.astype(np.uint16)):
            columns = {key: array for key, array in {**sound, name: wrong}.items() if array is not None}
            save_file(columns, tmp_path / "wrong")
            with pytest.raises(ValueError, match="column"):
                map_index("train", tmp_path / "wrong")


@pytest.mark.parametrize("name", [index_name(split) for split in SPLITS])
def test_a_missing_or_damaged_index_is_refused_by_name(tmp_path, name):
    folder = make_folder(tmp_path / "made")
    sound = (folder / name).read_bytes()
    for place in (0, 10, len(sound) // 2, len(sound) - 1):
        (folder / name).write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        for read in (open_shards, verify):
            with pytest.raises(UserError, match=rf"{name} is damaged"):
                read(folder)
    (folder / name).write_bytes(sound[:-1])
    with pytest.raises(UserError, match=rf"{name} has {len(sound) - 1} bytes instead of {len(sound)}"):
        open_shards(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        open_shards(folder)


def test_a_folder_of_schema_1_opens_and_verifies_as_one_of_schema_2(tmp_path):
    folder = make_folder(tmp_path / "made", statistics={"documents": {"documents": 80}})
    shutil.copytree(folder, tmp_path / "old")
    now, old = open_shards(folder), open_shards(as_schema_1(tmp_path / "old"))
    assert not list(old.path.glob("*.index.*"))
    assert old.manifest["schema_version"] == 1
    assert old.root_hash != now.root_hash
    for split in SPLITS:
        for name, column in now.indexes[split].columns.items():
            np.testing.assert_array_equal(old.indexes[split].columns[name], column)
        counts = {key: value for key, value in now.manifest["splits"][split].items() if key != "index"}
        assert old.manifest["splits"][split] == counts
        ours, theirs = now.split(split), pickle.loads(pickle.dumps(old.split(split)))
        for number in range(len(ours.chunk_rows)):
            for field, array in ours.chunk(number).items():
                np.testing.assert_array_equal(theirs.chunk(number)[field], array)
    assert verify(old.path).problems == ()

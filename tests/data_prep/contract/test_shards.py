import gzip
import hashlib
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from data_prep.contract import shards as contract
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import Geometry, decode_arrays, encode_arrays
from data_prep.contract.shard_writing import file_entry, write_manifest, write_shard
from data_prep.contract.shards import open_shards
from data_prep.verification.folder import verify
from tests.data_prep.shard_folders import as_schema_1, entries_of, make_chunks, make_folder


@pytest.fixture
def copied(tiny_shards, tmp_path):
    return shutil.copytree(tiny_shards, tmp_path / "copy")


def flip(path, offset, bit=0):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def read_all(folder):
    """Touch every chunk as training does."""
    shards = open_shards(folder)
    for name in ("train", "validation"):
        split = shards.split(name)
        for index in range(len(split.chunk_rows)):
            split.chunk(index)


def test_fields_are_as_the_contract_says(tiny_shards):
    shards = open_shards(tiny_shards)
    assert (shards.seq_length, shards.masked_per_row, shards.num_variants) == (32, 5, 3)
    assert shards.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    split = shards.split("train")
    assert split.num_rows == split.chunk_rows.sum()
    assert len(split.chunk_rows) > 8, "more than one shard"
    rows = int(split.chunk_rows[0])
    described = {name: (str(a.dtype), a.shape) for name, a in split.chunk(0).items()}
    boundaries = described.pop("boundary_positions")
    assert boundaries[0] == "uint16"
    assert described == {
        "input_ids": ("uint16", (rows, 32)),
        "lengths": ("uint16", (rows,)),
        "masked_positions": ("uint16", (rows, 3, 5)),
        "replacement_ids": ("uint16", (rows, 3, 5)),
        "num_masked": ("uint16", (rows, 3)),
        "sequence_ids": ("uint64", (rows,)),
        "boundary_offsets": ("uint32", (rows + 1,)),
    }


def test_large_vocabularies_get_wider_ids():
    sizes = {"seq_length": 8, "masked_per_row": 1, "num_variants": 1}
    assert Geometry(vocab_size=65_536, **sizes).token_dtype == np.uint16
    assert Geometry(vocab_size=65_537, **sizes).token_dtype == np.uint32


def test_arrays_are_read_only_views_and_splits_travel_to_other_processes(tiny_shards):
    split = open_shards(tiny_shards).split("validation")
    ids = split.chunk(0)["input_ids"]
    assert not ids.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        ids[0, 0] = 1
    again = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(again.chunk(0)["input_ids"], ids)


def test_plain_webdataset_reads_the_same_rows(tiny_shards):
    import webdataset as wds
    from safetensors.numpy import load

    shards = open_shards(tiny_shards)
    for name in ("train", "validation"):
        urls = [str(path) for path in sorted(tiny_shards.glob(f"{name}-*.tar"))]
        dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=True).map(
            lambda sample: load(sample["rows.safetensors"])
        )
        theirs = list(dataset)
        split = shards.split(name)
        assert len(theirs) == len(split.chunk_rows)
        for index, chunk in enumerate(theirs):
            ours = split.chunk(index)
            assert chunk.pop("__key__").startswith(name)
            assert set(chunk) == set(ours)
            for field, array in chunk.items():
                assert array.dtype == ours[field].dtype
                np.testing.assert_array_equal(array, ours[field])


def test_tars_are_plain_ustar_without_time_or_owner(tiny_shards):
    for path in tiny_shards.glob("*.tar"):
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            for number, member in enumerate(tar):
                assert member.name == f"{path.stem}-{number:04d}.rows.safetensors"
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
                assert (member.uname, member.gname) == ("narrowbert", "narrowbert")
                assert data[member.offset + 257 : member.offset + 265] == b"ustar\x0000"


def test_verify_passes_fresh_shards(tiny_shards):
    found = verify(tiny_shards)
    assert found.problems == ()
    assert open_shards(tiny_shards).root_hash in found.summary


def test_a_flipped_byte_of_a_chunk_is_refused_by_name(copied):
    shards = open_shards(copied)
    index = shards.indexes["train"]
    number = index.chunks(1)[2]
    offset, length = index.place(number)
    flip(copied / index.name(1), offset + length // 2)
    problems = verify(copied).problems
    assert len(problems) == 1
    assert "train-00001.tar, chunk 2" in problems[0]
    split = open_shards(copied).split("train")
    split.chunk(number - 1)
    with pytest.raises(UserError, match=r"train-00001\.tar, chunk 2"):
        split.chunk(number)


def test_verify_finds_a_flipped_bit_anywhere(copied):
    path = copied / "validation-00000.tar"
    sound = path.read_bytes()
    index = open_shards(copied).indexes["validation"]
    chunks = index.chunks(0)
    second, end = index.place(1)[0], sum(index.place(1))
    places = {
        second - 512: "chunk 1",  # the header's name
        second - 512 + 124: "chunk 1",  # its size
        second - 512 + 257: "chunk 1",  # its magic
        second - 1: "chunk 1",
        end + (-end % 512) - 1: "chunk 1",  # the padding
        len(sound) - 1: f"chunk {len(chunks) - 1}",  # the end of the tar
    }
    assert end % 512, "no padding to damage: choose another chunk"
    assert sum(index.place(chunks[-1])) < len(sound) - 1
    places.update(dict.fromkeys(np.random.default_rng(0).integers(0, len(sound), 40).tolist(), "chunk"))
    for place, chunk in places.items():
        flip(path, place, bit=place % 8)
        problems = verify(copied).problems
        assert problems, place
        assert all("validation-00000.tar" in problem for problem in problems)
        assert any(chunk in problem for problem in problems), (place, problems)
        path.write_bytes(sound)
    assert not verify(copied).problems


# Of the second chunk: where its tar header is, and the middle of its arrays.
CORRUPTIONS = {
    "cut after a member": lambda data, header, _middle: data[:header],
    "cut in a header": lambda data, header, _middle: data[: header + 100],
    "cut inside the data": lambda data, _header, middle: data[:middle],
    "zeroed tail": lambda data, header, _middle: data[:header] + bytes(len(data) - header),
    "zeroed block": lambda data, _header, middle: data[:middle] + bytes(512) + data[middle + 512 :],
    "flipped bit": lambda data, _header, middle: data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
    "damaged header": lambda data, header, _middle: data[: header + 148] + b"garbage" + data[header + 155 :],
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_seven_corruptions_are_refused_by_name(copied, corruption):
    """Five of them pass plain WebDataset without a word."""
    path = copied / "train-00000.tar"
    offset, length = open_shards(copied).indexes["train"].place(1)
    header, middle = offset - 512, offset + length // 2
    path.write_bytes(CORRUPTIONS[corruption](path.read_bytes(), header, middle))
    problems = verify(copied).problems
    assert problems
    assert all("train-00000.tar" in problem for problem in problems)
    assert len(set(problems)) == len(problems)
    with pytest.raises(UserError, match=r"train-00000\.tar") as refused:
        read_all(copied)
    if "cut" not in corruption:  # then the size is right, and the chunk tells
        assert any("train-00000.tar, chunk 1" in problem for problem in problems)
        assert "train-00000.tar, chunk 1" in str(refused.value)


def test_missing_and_empty_shards_are_refused_by_name(copied):
    path = copied / "train-00000.tar"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"train-00000\.tar has 0 bytes instead of"):
        open_shards(copied)
    path.unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar is missing"):
        open_shards(copied)
    assert any("train-00000.tar is missing" in problem for problem in verify(copied).problems)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("place", ["split", "shard", "shards", "chunk"])
def test_counts_that_do_not_fit_the_rows_are_refused(copied, place, schema):
    manifest, entries = json.loads((copied / "manifest.json").read_text()), entries_of(copied)
    split, shard = manifest["splits"]["train"], entries["train"][0]
    if place == "chunk":  # adds up, but the chunk holds another number of rows
        split["rows"] += 1
        shard["rows"] += 1
        shard["chunks"][0]["rows"] += 1
    else:
        (split if place == "split" else shard)["rows"] += 1
        if place == "shards":  # their sum is right
            entries["train"][1]["rows"] -= 1
    write_manifest(copied, manifest, entries)
    if schema == 1:
        as_schema_1(copied)
    expected = (
        r"train-00000\.tar, chunk 0: .* instead of"
        if place == "chunk"
        else r"manifest\.json: the row counts of split train"
    )
    assert any(re.search(expected, problem) for problem in verify(copied).problems)
    with pytest.raises(UserError, match=expected):
        read_all(copied)


def test_bytes_are_those_of_webdatasets_writer(tmp_path):
    from webdataset.writer import TarWriter

    for count in (1, 2, 8):
        chunks = list(make_chunks(np.full(8 * count, 50), "concat", 0))
        entry = write_shard(tmp_path, "train", count, chunks)
        theirs = io.BytesIO()
        with TarWriter(theirs, user="narrowbert", group="narrowbert", mode=0o444, mtime=0, encoder=False) as writer:
            writer.tarstream.format = tarfile.USTAR_FORMAT
            for number, arrays in enumerate(chunks):
                key = f"train-{count:05d}-{number:04d}"
                writer.write({"__key__": key, "rows.safetensors": encode_arrays(arrays)})
        written = (tmp_path / entry["name"]).read_bytes()
        assert written == theirs.getvalue()
        assert entry["sha256"] == hashlib.sha256(written).hexdigest()


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "train-00000.tar"
    chunks = list(make_chunks(np.full(8, 50), "concat", 0))

    def interrupted():
        yield chunks[0]
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "train", 0, interrupted())
    assert list(tmp_path.iterdir()) == []
    entry = write_shard(tmp_path, "train", 0, chunks)
    assert write_shard(tmp_path, "train", 0, chunks) == entry
    assert list(tmp_path.iterdir()) == [path]


def test_the_contract_is_quick_to_import():
    code = "import sys, data_prep.contract.shards; "
    code += "sys.exit(bool({'torch', 'webdataset', 'fsspec', 'aiohttp'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_any_changed_byte_of_the_manifest_is_refused(copied):
    path = copied / "manifest.json"
    sound = path.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(sound), 200).tolist():
        flip(path, place, bit=place % 7)
        with pytest.raises(UserError, match=r"manifest\.json"):
            open_shards(copied)
        path.write_bytes(sound)


def test_another_tokenizer_is_refused(copied):
    flip(copied / "tokenizer.json", 40)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        open_shards(copied)
    assert "tokenizer.json" in verify(copied).problems[0]


def test_other_schema_versions_missing_folders_and_strange_tars(copied, tmp_path):
    (copied / "train-99999.tar").write_bytes(b"")
    assert "train-99999.tar is not in the manifest" in verify(copied).problems[0]
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["schema_version"] = 3
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="schema version 3, this program reads 1 and 2"):
        open_shards(copied)
    with pytest.raises(UserError, match="narrowbert-prep shards"):
        open_shards(tmp_path / "none")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_shards(tmp_path)
    with pytest.raises(UserError, match="no split 'test'"):
        contract.ShardFolder(path=copied, manifest=manifest, indexes={}).split("test")


def rewritten(folder, change):
    """The folder with `change(arrays)` done to its first validation chunk, and all hashes made right."""
    entries = entries_of(folder)
    split = open_shards(folder).split("validation")
    chunks = [{k: np.array(v) for k, v in split.chunk(i).items()} for i in split.index.chunks(0)]
    change(chunks[0])
    entries["validation"][0] = write_shard(folder, "validation", 0, chunks)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {k: v for k, v in manifest.items() if k != "root_hash"}, entries)
    return folder


@pytest.mark.parametrize("mode", ["concat", "isolated", "document"])
def test_verify_accepts_the_rows_of_every_packing_mode(tmp_path, mode):
    folder = make_folder(tmp_path / mode, mode)
    assert verify(folder).problems == ()
    arrays = open_shards(folder).split("train").chunk(0)
    inner = (arrays["input_ids"][:, 1:] == 2).any(axis=1)
    boundaries = np.diff(arrays["boundary_offsets"]) > 0
    assert {
        "concat": boundaries.any() and not inner.any(),
        "isolated": inner.any() and (inner == boundaries).all(),
    }.get(mode, not boundaries.any() and (arrays["lengths"] < 32).any()), "not what the mode is to show"


def isolated_row(arrays):
    """(row, place of its second [CLS])."""
    row = int(np.argmax(np.diff(arrays["boundary_offsets"]) > 0))
    return row, int(arrays["boundary_positions"][arrays["boundary_offsets"][row]])


def inner_frame_without_boundary(arrays):
    row, place = isolated_row(arrays)
    free = next(p for p in range(place + 2, 31) if not (arrays["masked_positions"][row] == p).any())
    arrays["input_ids"][row, free] = 2


def unframed_boundary(arrays):
    row, place = isolated_row(arrays)
    arrays["input_ids"][row, place] = 9


def empty_piece(arrays):
    row, place = isolated_row(arrays)
    arrays["input_ids"][row, place + 1] = 3


def masked_inner_frame(arrays):
    row, place = isolated_row(arrays)
    first = arrays["masked_positions"][row, 0]
    first[np.argmin(np.abs(first.astype(int) - place))] = place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (inner_frame_without_boundary, r"\[CLS\] inside a row where no boundary is"),
        (unframed_boundary, r"with and without a \[CLS\]"),
        (empty_piece, "a piece without tokens"),
        (masked_inner_frame, "special token or padding masked"),
    ],
)
def test_verify_checks_the_frames_of_isolated_pieces(tmp_path, change, message):
    problems = verify(rewritten(make_folder(tmp_path / "isolated", "isolated"), change)).problems
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize(("key", "name"), [("rejects", "rejects.jsonl.gz"), ("inputs", "inputs.jsonl")])
def test_verify_checks_further_files_where_there_are_some(tmp_path, key, name):
    content = gzip.compress(b"{}\n", mtime=0)
    entry = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    folder = make_folder(tmp_path / "made", files={key: entry}, statistics={"documents": {"documents": 80}})
    path = folder / name
    for damaged, message in ((None, "is missing"), (b"", "0 bytes"), (content[::-1], "damaged"), (content, None)):
        if damaged is not None:
            path.write_bytes(damaged)
        problems = verify(folder).problems
        assert [message in problem and str(path) in problem for problem in problems] == [True] * (message is not None)
        read_all(folder)
    assert open_shards(folder).manifest["statistics"] == {"documents": {"documents": 80}}
    assert file_entry(path) == entry
    manifest, entries = open_shards(folder).manifest, entries_of(folder)
    for files, message in (
        ({key: {**entry, "name": "../../etc/passwd"}}, rf"etc/passwd.* in place of {re.escape(name)}"),
        ({"keys": entry}, r"in place of rejects\.jsonl\.gz or inputs\.jsonl"),
    ):
        write_manifest(folder, {**manifest, "files": files}, entries)
        with pytest.raises(UserError, match=message):
            verify(folder)


def set_at(field, index, value):
    def change(arrays):
        arrays[field][index] = value

    return change


def duplicate_id(arrays):
    arrays["sequence_ids"][1] = arrays["sequence_ids"][0]


def boundary_without_separator(arrays):
    row = int(np.argmax(np.diff(arrays["boundary_offsets"]) > 0))
    arrays["input_ids"][row, arrays["boundary_positions"][arrays["boundary_offsets"][row]] - 1] = 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("lengths", 0, 33), "length out of range"),
        (set_at("lengths", 0, 20), "does not fit its padding"),
        (set_at("input_ids", (0, 3), 5000), "token id beyond"),
        (set_at("input_ids", (0, 0), 9), "does not begin with"),
        (set_at("input_ids", (0, 31), 9), "does not end with"),
        (set_at("input_ids", (0, 3), 4), r"\[MASK\] among"),
        (set_at("replacement_ids", (0, 0, 0), 5000), "replacement id beyond"),
        (set_at("replacement_ids", (0, 0, 0), 3), "special token as replacement"),
        (set_at("masked_positions", (0, 0, 4), 40), "outside its tokens"),
        (set_at("masked_positions", (0, 0, 0), 0), "special token or padding masked"),
        (set_at("masked_positions", (0, 0, 4), 1), "do not rise"),
        (set_at("num_masked", (0, 0), 6), "more masks than slots"),
        (set_at("num_masked", (0, 0), 2), "not neutral"),
        (set_at("boundary_offsets", 0, 1), "boundary offsets"),
        (boundary_without_separator, r"no \[SEP\] precedes"),
        (duplicate_id, "not unique"),
    ],
)
def test_verify_checks_the_legality_of_rows(copied, change, message):
    problems = verify(rewritten(copied, change)).problems
    assert any(re.search(message, problem) for problem in problems), problems


def test_rewriting_without_a_change_gives_the_same_root_hash(copied):
    before = open_shards(copied).root_hash
    assert open_shards(rewritten(copied, lambda _: None)).root_hash == before


def test_safetensors_headers_are_not_trusted():
    good = encode_arrays({"a": np.arange(4, dtype=np.uint16)})
    np.testing.assert_array_equal(decode_arrays(memoryview(good))["a"], np.arange(4))
    floats = encode_arrays({"a": np.zeros(4, dtype=np.float32)})
    header = json.dumps({"a": {"dtype": "U16", "shape": [9], "data_offsets": [0, 18]}}).encode()
    long = len(header).to_bytes(8, "little") + header
    for bad in (b"", good[:-1], b"\xff" * 16, b"\x02" + bytes(7) + b"[]", floats, long):
        with pytest.raises(ValueError, match=r"safetensors|type|fit"):
            decode_arrays(memoryview(bad))


def test_root_hash_is_over_the_canonical_json_of_the_rest(tiny_shards):
    manifest = json.loads((tiny_shards / "manifest.json").read_text())
    root = manifest.pop("root_hash")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == root

"""Folders that `datasets` and MosaicML Streaming save, and single Arrow files: every row is a document or a reject."""

import gzip
import json
import struct

import pyarrow
import pytest

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus import partitions as partitions_module
from data_prep.corpus.documents import Document, Reject
from tests.data_prep.corpus.test_corpus import COMPRESS, check_cuts, read

BAD = b"\xc3\xa9 \xff\xfe \xc3\xa9"
ROWS = [f"text {i} é" for i in range(100)]


def texts(items):
    return [item.text for item in items if isinstance(item, Document)]


def rejects(items):
    return {item.id: item.reason for item in items if isinstance(item, Reject)}


def write_arrow(path, rows, opened, batch=10, **options):
    table = pyarrow.table({"id": range(len(rows)), "text": rows})
    with opened(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=batch)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("opened", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_and_streams_in_any_partitions(tmp_path, opened, suffix):
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    write_arrow(tmp_path / "raw", [*ROWS, None, " "], opened, options=options)
    (tmp_path / f"a.arrow{suffix}").write_bytes(COMPRESS[suffix]((tmp_path / "raw").read_bytes()))
    items = check_cuts(tmp_path / f"a.arrow{suffix}", CorpusConfig(), CleaningConfig(), [2, 5, 11], [3, 1, 0, 2])
    assert texts(items) == ROWS
    assert [item.id for item in items] == [f"a.arrow{suffix}:{i}" for i in range(1, 103)]
    assert rejects(items) == {f"a.arrow{suffix}:101": "no_text_field", f"a.arrow{suffix}:102": "empty"}


def test_large_files_have_several_partitions(tmp_path, monkeypatch):
    monkeypatch.setattr(partitions_module, "MIN_PARTITION_BYTES", 200)
    write_arrow(tmp_path / "a.arrow", ROWS, pyarrow.ipc.new_stream)
    write_mds(tmp_path / "b.mds", [{"text": row} for row in ROWS])
    assert texts(read(tmp_path)) == ROWS * 2


@pytest.mark.parametrize("opened", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_that_are_damaged(tmp_path, opened):
    write_arrow(tmp_path / "raw", ROWS, opened)
    content = (tmp_path / "raw").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: len(content) // 2])
    items = read(tmp_path)
    kept = texts(items)
    assert kept == ROWS[: len(kept)]
    assert list(rejects(items).values()) == ["damaged_file"]
    assert len(kept) == (0 if opened is pyarrow.ipc.new_file else 50) or 30 < len(kept) < 60
    for content, reason in ((b"", "damaged_file"), (b"no arrow at all", "damaged_file")):
        (tmp_path / "a.arrow").write_bytes(content)
        assert rejects(read(tmp_path)) == {"a.arrow": reason}
    write_arrow(tmp_path / "a.arrow", [], opened)
    assert rejects(read(tmp_path)) == {"a.arrow": "empty"}
    assert rejects(read(tmp_path, text_field="body")) == {"a.arrow": "no_text_field"}


def test_what_datasets_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"text": ROWS, "meta": [{"title": f"title {i}"} for i in range(100)]})
    saved.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": saved, "test": saved.select(range(5, 8))}).save_to_disk(tmp_path / "two")
    assert texts(read(tmp_path / "one")) == ROWS
    assert texts(read(tmp_path / "two")) == [*ROWS[5:8], *ROWS]
    assert rejects(read(tmp_path / "two")) == {}
    assert texts(read(tmp_path / "one", text_field=("meta.title", "text")))[7] == "title 7\n\ntext 7 é"


def write_mds(path, samples, encodings=None, sizes=None):
    """As MDSWriter of mosaicml-streaming 0.13 does."""
    names = sorted(samples[0]) if samples else ["text"]
    encodings = encodings or ["str"] * len(names)
    sizes = sizes or [None] * len(names)
    columns = {"column_names": names, "column_encodings": encodings, "column_sizes": sizes}
    config = json.dumps({"version": 2, "format": "mds", "compression": None, **columns}, sort_keys=True).encode()
    bodies = []
    for sample in samples:
        data = [value if isinstance(value := sample[name], bytes) else value.encode() for name in names]
        variable = [len(part) for part, size in zip(data, sizes, strict=True) if size is None]
        bodies.append(struct.pack(f"<{len(variable)}I", *variable) + b"".join(data))
    offsets = [4 * (len(bodies) + 2) + len(config)]
    for body in bodies:
        offsets.append(offsets[-1] + len(body))
    path.write_bytes(struct.pack(f"<{len(offsets) + 1}I", len(bodies), *offsets) + config + b"".join(bodies))


@pytest.mark.parametrize("suffix", [*COMPRESS, ".zstd"])
def test_shards_of_streaming_in_any_partitions(tmp_path, suffix):
    samples = [{"id": struct.pack("<q", i), "text": row, "url": "http://a"} for i, row in enumerate([*ROWS, "", BAD])]
    write_mds(tmp_path / "raw", samples, ["int", "str", "str"], [8, None, None])
    name = f"shard.00000.mds{suffix}"
    (tmp_path / name).write_bytes(COMPRESS[suffix.removesuffix("d")]((tmp_path / "raw").read_bytes()))
    (tmp_path / "index.json").write_text("{}")
    items = check_cuts(tmp_path, CorpusConfig(), CleaningConfig(), [2, 50, 99], [3, 1, 0, 2])
    assert texts(items) == ROWS
    assert rejects(items) == {f"{name}:101": "empty", f"{name}:102": "undecodable"}


def test_columns_of_streaming(tmp_path):
    rows = [{"meta": json.dumps({"title": "One", "n": 1}), "text": "first"}, {"meta": "[", "text": "second"}]
    write_mds(tmp_path / "a.mds", rows, ["json", "str"])
    items = read(tmp_path, text_field=("meta.title", "text"))
    assert texts(items) == ["One\n\nfirst"]
    assert rejects(items) == {"a.mds:2": "not_json"}
    for field, said in (("none", "no column 'none' among meta, text"), ("text.x", "the column 'text.x' is str")):
        (reject,) = read(tmp_path, text_field=field)
        assert (reject.id, reject.reason, reject.detail) == ("a.mds", "no_text_field", said)
    write_mds(tmp_path / "a.mds", [{"text": b"12345678"}], ["int"], [8])
    assert [item.detail for item in read(tmp_path)] == ["the column 'text' is int"]


def test_shards_of_streaming_that_are_damaged(tmp_path):
    write_mds(tmp_path / "a.mds", [{"text": row} for row in ROWS])
    content = bytearray((tmp_path / "a.mds").read_bytes())
    (tmp_path / "a.mds").write_bytes(content[:-50])
    items = read(tmp_path)
    assert texts(items) == ROWS[:96]
    assert set(rejects(items)) == {f"a.mds:{i}" for i in (97, 98, 99, 100)}
    content[4 * 51 : 4 * 52] = b"\xff\xff\xff\xff"
    (tmp_path / "a.mds").write_bytes(content)
    items = read(tmp_path)
    assert texts(items) == ROWS[:49] + ROWS[51:]
    assert rejects(items) == {"a.mds:50": "damaged_file", "a.mds:51": "damaged_file"}
    for bad in (b"", b"\xff" * 40, bytes(40), content[:300], gzip.compress(content)):
        (tmp_path / "a.mds").write_bytes(bad)
        assert rejects(read(tmp_path)) == {"a.mds": "damaged_file"}
    write_mds(tmp_path / "a.mds", [])
    assert rejects(read(tmp_path)) == {"a.mds": "empty"}


def test_encodings_and_errors_that_are_named(tmp_path):
    write_mds(tmp_path / "a.mds", [{"text": "Wrocław".encode("cp1250")}])
    (tmp_path / "b.json").write_bytes(json.dumps([{"text": "Wrocław"}], ensure_ascii=False).encode("cp1250"))
    for name in ("a.mds", "b.json"):
        assert texts(read(tmp_path / name, encoding="cp1250")) == ["Wrocław"]
        assert texts(read(tmp_path / name, encoding="utf-8", errors="replace")) == ["Wroc\ufffdaw"]

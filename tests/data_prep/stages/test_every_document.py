"""Every document of every format is in the shards or among the rejects: none is lost, none counted twice."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.contract.shard_format import SPLITS
from data_prep.contract.shards import open_shards
from tests.data_prep.corpus.test_corpus import COMPRESS
from tests.data_prep.corpus.test_table_folders import BAD, write_mds
from tests.data_prep.corpus.test_web_pages import PAGE, answer, record
from tests.data_prep.stages.test_splits import rejects_of, texts_of
from tests.data_prep.stages.test_stages import sentences

pytest.importorskip("fastwarc.warc")
pytest.importorskip("resiliparse")

SHARED = b"the one sentence that every file has, whatever its format"
EMPTY = b"\xe2\x80\x8b"  # a zero-width space

Writer = Callable[[Path, Sequence[bytes]], None]


def payloads(name: str) -> list[bytes]:
    """Documents of a file: three good ones, a duplicate of the second, what all files have, one of bad bytes, one
    without text."""
    good = [f"{text} in {name}".encode() for text in sentences(3, len(name))]
    return [*good, good[1], SHARED, BAD + name.encode(), EMPTY]


def in_lines(wrap: Callable[[bytes], bytes], head: bytes = b"", end: bytes = b"\n") -> Writer:
    def write(path: Path, texts: Sequence[bytes]) -> None:
        path.write_bytes(head + b"".join(wrap(text) + end for text in texts))

    return write


def as_object(text: bytes) -> bytes:
    return b'{"text": "' + text + b'"}'


def write_json(path: Path, texts: Sequence[bytes]) -> None:
    path.write_bytes(b"[" + b",\n".join(map(as_object, texts)) + b"]")


def write_parquet(path: Path, texts: Sequence[bytes]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.binary())}), path, row_group_size=3)


def write_arrow(path: Path, texts: Sequence[bytes]) -> None:
    table = pa.table({"text": pa.array(texts, pa.binary())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_samples(path: Path, texts: Sequence[bytes]) -> None:
    write_mds(path, [{"text": text} for text in texts])


def write_answers(path: Path, texts: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(answer("200 OK", text, kind="text/plain") for text in texts))


def write_conversions(path: Path, texts: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(record("conversion", text, content_type="text/plain") for text in texts))


FORMATS: dict[str, Writer] = {
    "txt": in_lines(bytes),
    "jsonl": in_lines(as_object),
    "json": write_json,
    "csv": in_lines(lambda text: b'"' + text + b'"', b"text\r\n", b"\r\n"),
    "tsv": in_lines(lambda text: text + b"\t1", b"text\tnumber\n"),
    "parquet": write_parquet,
    "arrow": write_arrow,
    "mds": write_samples,
    "warc": write_answers,
    "wet": write_conversions,
}


def write_corpus(folder: Path) -> dict[str, list[bytes]]:
    """A file of each format, plain and in each compression; name -> its documents."""
    folder.mkdir()
    written = {}
    for kind, write in FORMATS.items():
        for suffix, compress in COMPRESS.items():
            path = folder / f"all.{kind}{suffix}"
            written[path.name] = payloads(path.name)
            write(path, written[path.name])
            path.write_bytes(compress(path.read_bytes()))
    for suffix, compress in COMPRESS.items():
        for number, text in enumerate(payloads(f"page{suffix}")):
            path = folder / f"page{number}.html{suffix}"
            written[path.name] = [text]
            path.write_bytes(compress(PAGE % text))
    return written


def test_documents_in_are_documents_in_the_shards_and_rejects(tmp_path: Path) -> None:
    written = write_corpus(tmp_path / "corpus")
    options = [
        "--corpus.paths", json.dumps([str(tmp_path / "corpus" / "*.*")]), "--output", str(tmp_path / "shards"),
        "--corpus.txt_documents", "line", "--vocabulary.size", "400", "--seq_length", "32", "--num_workers", "1",
        "--validation_fraction", "0.2", "--write_text", "true", "--mask.variants", "1",
    ]  # fmt: skip
    assert main(["vocab", *options]) == 0
    assert main(["shards", *options]) == 0
    texts = [pq.read_table(path) for path in sorted((tmp_path / "shards" / "text").iterdir())]
    kept = Counter(file_of(name) for table in texts for name in table["id"].to_pylist())
    rejects = rejects_of(tmp_path / "shards")
    rejected = Counter(file_of(name) for name, *_ in rejects)
    assert {name: kept[name] + rejected[name] for name in written} == {n: len(texts) for n, texts in written.items()}
    for name in written:
        if ".html" not in name:
            reasons = Counter(reason for where, reason, _ in rejects if file_of(where) == name)
            shared = name != min(written)
            assert reasons == Counter(duplicate=1 + shared, undecodable=1, empty=1), name
    manifest = open_shards(tmp_path / "shards").manifest
    assert manifest["statistics"]["read"] == sum(map(len, written.values()))
    assert sum(manifest["splits"][split]["documents"] for split in SPLITS) == sum(kept.values())
    found = Counter(text for of_split in texts_of(tmp_path / "shards").values() for text in of_split)
    assert set(found.values()) == {1}
    assert found[SHARED.decode()] == 1


def file_of(document_id: str) -> str:
    """The file that an id names."""
    return document_id.partition(" ")[0].partition(":")[0].partition("#")[0]


def test_encodings_of_single_documents_are_counted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    russian = [f"{number}: русский текст, который читается как русский язык".encode("cp1251") for number in range(3)]
    english = [text.encode() for text in sentences(20, 1)]
    write_answers(corpus / "a.warc", [*english[:5], russian[0]])
    write_parquet(corpus / "b.parquet", [*english[5:10], russian[1]])
    write_samples(corpus / "c.mds", [*english[10:15], russian[2]])
    in_lines(as_object)(corpus / "d.jsonl", [*english[15:], russian[0] + b" d", russian[1] + b" d"])
    options = [
        "--corpus.paths", json.dumps([str(corpus / "*.*")]), "--output", str(tmp_path / "shards"), "--num_workers", "1",
        "--vocabulary.size", "400", "--seq_length", "32", "--validation_fraction", "0", "--mask.variants", "1",
    ]  # fmt: skip
    assert main(["vocab", *options]) == 0
    capsys.readouterr()
    assert main(["shards", *options]) == 0
    printed = "".join(capsys.readouterr())
    assert "1 file read as cp1251" in printed
    assert "3 documents read as cp1251" in printed
    (source,) = open_shards(tmp_path / "shards").manifest["statistics"]["sources"]
    assert source["encodings"] == {"cp1251": 3}
    assert "3 documents read as cp1251; all else is UTF-8" in (tmp_path / "shards" / "report.html").read_text()

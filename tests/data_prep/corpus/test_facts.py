"""URL and score of a record, in every format that has fields."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.config import CleaningConfig
from data_prep.corpus.documents import Document
from tests.data_prep.corpus.test_corpus import read
from tests.data_prep.corpus.test_table_folders import write_mds

RECORDS = [
    {"text": "a", "meta": {"url": "http://a.example/1"}, "score": 3.5},
    {"text": "b", "meta": {"url": None}, "score": None},
    {"text": "c", "meta": {"url": "c.example"}, "score": -1.0},
]
FACTS = [("a", "http://a.example/1", 3.5), ("b", None, None), ("c", "c.example", -1.0)]


def facts(folder, **options):
    items = read(folder, **options)
    return [(item.text, item.url, item.score) if isinstance(item, Document) else item for item in items]


def write(path):
    """The records in the format of a path."""
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, RECORDS)))
        case ".json":
            path.write_text(json.dumps(RECORDS))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        case ".arrow":
            table = pyarrow.Table.from_pylist(RECORDS)
            with pyarrow.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "arrow"])
def test_fields_of_records(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a.{suffix}"
    write(path)
    corpus = path if suffix == "json" else path.parent
    assert facts(corpus, url_field="meta.url", score_field="score") == FACTS
    assert facts(corpus) == [(text, None, None) for text, *_ in FACTS]
    assert facts(corpus, url_field="no.such", score_field="meta.score") == [(text, None, None) for text, *_ in FACTS]


def test_columns_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text("score,text,url\n3,a,http://a.example\nmany,b,\nnan,c,c.example\n1e999,d,\n")
    expected = [("a", "http://a.example", 3.0), ("b", None, None), ("c", "c.example", None), ("d", None, None)]
    assert facts(tmp_path, url_field="url", score_field="score") == expected


def test_columns_of_streaming(tmp_path):
    samples = [{"text": b"a", "url": b"u.example", "score": (4).to_bytes(8, "little"), "other": b"\xff"}]
    write_mds(tmp_path / "a.mds", samples, ["jpeg", "int", "str", "str"], [None, 8, None, None])  # by their names
    assert facts(tmp_path, url_field="url", score_field="score") == [("a", "u.example", 4.0)]
    assert facts(tmp_path, url_field="other", score_field="text") == [("a", None, None)]


def test_pieces_of_a_long_text_have_those_of_the_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 500, "url": "u", "score": "2"}))
    found = facts(tmp_path, url_field="url", score_field="score", cleaning=CleaningConfig(max_characters=1_000))
    assert len(found) > 1
    assert {piece[1:] for piece in found} == {("u", 2.0)}

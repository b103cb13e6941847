"""Text from several fields, and from fields within fields, in every format that has fields."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.config import CorpusConfig, PrepConfig, check_config
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import Document, Reject
from tests.data_prep.corpus.test_corpus import read

FIELDS = ("title", "body.text")
RECORDS = [
    {"title": "One", "body": {"text": "first é"}},
    {"title": "", "body": {"text": "no title"}},
    {"title": None, "body": {"text": "null title"}},
    {"title": "No text", "body": {"text": None}},
    {"title": None, "body": None},
]
TEXTS = ["One\n\nfirst é", "no title", "null title", "No text"]


def details(items):
    return {item.id: (item.reason, item.detail) for item in items if isinstance(item, Reject)}


def texts(items):
    return [item.text for item in items if isinstance(item, Document)]


def test_lines_of_json(tmp_path):
    records = [
        *RECORDS[:4],
        {"title": "t"},
        {"body": {"text": "b"}},
        {"title": "t", "body": "b"},
        {"title": 1, "body": {}},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    items = read(tmp_path, text_field=FIELDS)
    assert texts(items) == TEXTS
    assert details(items) == {
        "a.jsonl:5": ("no_text_field", "no field 'body.text' among title"),
        "a.jsonl:6": ("no_text_field", "no field 'title' among body"),
        "a.jsonl:7": ("no_text_field", "no field 'body.text' among title, body"),
        "a.jsonl:8": ("no_text_field", "the field 'title' is no string but int"),
    }


def test_a_name_with_a_dot_comes_before_the_field_within(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a.b": "plain", "a": {"b": "within"}}\n{"a": {"b": "within"}}\n')
    (tmp_path / "b.csv").write_text("a.b\ncolumn\n")
    table = {"a.b": ["plain"], "a": [{"b": "within"}]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "c.parquet")
    assert texts(read(tmp_path, text_field="a.b")) == ["plain", "within", "column", "plain"]


def test_columns_of_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=2)
    items = read(tmp_path, text_field=FIELDS)
    assert texts(items) == TEXTS
    assert {place: reason for place, (reason, _) in details(items).items()} == {"a.parquet:5": "empty"}
    assert texts(read(tmp_path, text_field="body.text")) == ["first é", "no title", "null title"]
    for field, said in (
        (("title", "none"), "no column 'none' among title, body"),
        (("title", "body"), "the column 'body' is struct"),
        ("body.none", "no column 'body.none' among title, body"),
        ("title.x", "no column 'title.x' among title, body"),
    ):
        ((reason, detail),) = details(read(tmp_path, text_field=field)).values()
        assert reason == "no_text_field"
        assert detail.startswith(said)


def test_columns_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text('text,id,title\n"b, c",1,Title\n,2,only\nx,3\n')
    items = read(tmp_path, text_field=("title", "text"))
    assert texts(items) == ["Title\n\nb, c", "only"]
    assert details(items) == {"a.csv:4": ("no_text_field", "2 fields instead of 3")}
    ((_, detail),) = details(read(tmp_path, text_field=("title", "body"))).values()
    assert detail == "no field 'body' among text, id, title"


@pytest.mark.parametrize("field", ["", (), ("text", "")])
def test_no_name_is_refused(field):
    with pytest.raises(UserError, match=r"corpus\.text_field names no field"):
        check_config(PrepConfig(output="x", corpus=CorpusConfig(text_field=field)))

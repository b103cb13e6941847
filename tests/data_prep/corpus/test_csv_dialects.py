"""Delimiters, quotes, headers and line ends of .csv and .tsv files, as programs write them."""

import csv
import io
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CleaningConfig, CorpusConfig, PrepConfig, check_config
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import Document, Reject
from data_prep.corpus.formats import csv_format
from tests.data_prep.corpus.test_corpus import check_cuts, read

PLAIN_QUOTES = b'id\ttext\n1\t"Start of a quotation\n2\tmiddle sentence\n3\tits last word"\n4\tnext\n'
QUOTED = b'id\ttext\n1\t"two\nlines"\n2\t"a ""word"" in quotes"\n3\tplain\n'


def found(path, **options):
    items = read(path, **options)
    assert [item for item in items if isinstance(item, Reject)] == []
    return [item.text for item in items if isinstance(item, Document)]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        (
            "a.csv",
            b"id;text\r\n1;Hallo Welt, wie geht es\r\n2;noch ein Text\r\n",
            ["Hallo Welt, wie geht es", "noch ein Text"],
        ),
        ("a.csv", b"id|text\n1|a,b;c\n", ["a,b;c"]),
        ("a.csv", b"id\ttext\n1\ta,b\n", ["a,b"]),
        ("a.csv", b'\xef\xbb\xbf"text","id"\n"a, b",1\n', ["a, b"]),
        ("a.csv", b"id, text , other\n1,a,b\n", ["a"]),
        ("a.csv", b"text;x\nnot; a delimiter\n", ["not"]),
        ("a.csv", b"text\none; two\n", ["one; two"]),
        ("a.csv", b'id,text\r1,"one\rtwo"\r2,three\r', ["one\ntwo", "three"]),
        ("a.csv", "id,text\r1,été\r2,b".encode("utf-16"), ["été", "b"]),
        ("a.tsv", b"id\ttext\r1\ta\r2\tb\r", ["a", "b"]),
        ("a.tsv", b"id,text\n1,a\tb\n", ["a\tb"]),
        ("a.tsv", PLAIN_QUOTES, ['"Start of a quotation', "middle sentence", 'its last word"', "next"]),
        ("a.tsv", b'id\ttext\n1\t"Hello," he said.\n2\t5" pipe\n', ['"Hello," he said.', '5" pipe']),
        ("a.tsv", b'id\ttext\n1\t"never closed\n2\tb\n3\tc\n', ['"never closed', "b", "c"]),
        ("a.tsv", QUOTED, ["two\nlines", 'a "word" in quotes', "plain"]),
        ("a.tsv", b'"id"\t"text"\n"1"\t"a\tb"\n', ["a\tb"]),
    ],
)
def test_files_of_all_kinds_of_programs(tmp_path, name, content, texts):
    (tmp_path / name).write_bytes(content)
    assert found(tmp_path / name) == texts


def test_what_is_named_is_what_is_done(tmp_path):
    (tmp_path / "a.tsv").write_bytes(QUOTED)
    items = read(tmp_path, csv_quoting="none")
    assert [item.text for item in items if isinstance(item, Document)] == ['"two', '"a ""word"" in quotes"', "plain"]
    assert [(item.id, item.detail) for item in items if isinstance(item, Reject)] == [
        ("a.tsv:3", "1 fields instead of 2")
    ]
    (tmp_path / "a.tsv").write_bytes(PLAIN_QUOTES)
    assert len(found(tmp_path, csv_quoting="minimal")) == 2
    (tmp_path / "a.tsv").write_bytes(b"text;id\na,b;1\n")
    assert found(tmp_path, csv_delimiter=";") == ["a,b"]
    ((_, reject),) = enumerate(read(tmp_path, csv_delimiter="tab"))
    assert (reject.reason, reject.detail) == ("no_text_field", "no field 'text' among text;id")


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "é", "\0"])
def test_delimiters_that_cannot_be(delimiter):
    with pytest.raises(UserError, match=r"corpus\.csv_delimiter is .*: give one ASCII character"):
        check_config(PrepConfig(output="x", corpus=CorpusConfig(csv_delimiter=delimiter)))


@pytest.mark.parametrize(("options", "warned"), [({}, 1), ({"csv_quoting": "minimal"}, 0)])
def test_lines_that_are_joined_in_a_tsv_are_warned_about(tmp_path, caplog, options, warned):
    (tmp_path / "a.tsv").write_bytes(QUOTED + QUOTED[8:])
    (tmp_path / "b.csv").write_bytes(QUOTED.replace(b"\t", b","))
    with caplog.at_level(logging.WARNING):
        assert len(found(tmp_path, **options)) == 9
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warned
    assert all("a.tsv: quotes join its lines 2 to 3 into one record" in line for line in said)


FIELDS = st.text(st.sampled_from('ab "\té;,'), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(FIELDS.map(str.strip).filter(bool), min_size=1, max_size=8), cut=st.integers(0, 60), data=st.data()
)
def test_what_a_writer_wrote_is_read_as_it_meant(tmp_path_factory, rows, cut, data):
    folder = tmp_path_factory.mktemp("any")
    name, delimiter = data.draw(st.sampled_from([("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")]))
    stream = io.StringIO(newline="")
    style = csv.QUOTE_ALL if name == "a.tsv" else csv.QUOTE_MINIMAL
    writer = csv.writer(stream, delimiter=delimiter, quoting=style, lineterminator="\n")
    writer.writerows([["id", "text"], *(["1", row] for row in rows)])
    (folder / name).write_bytes(stream.getvalue().encode())
    head = data.draw(st.sampled_from([csv_format.HEAD_BYTES, 30])) if name == "a.csv" else csv_format.HEAD_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "HEAD_BYTES", head)
        assert found(folder) == rows
        check_cuts(folder / name, CorpusConfig(), CleaningConfig(), [cut], [1, 0])


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.text(st.sampled_from('ab "é,'), max_size=12).map(str.strip).filter(bool), min_size=1, max_size=8)
)
def test_lines_are_records_where_quotes_are_text(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.tsv").write_bytes(
        "".join(f"{line}\n" for line in ["id\ttext", *(f"1\t{row}" for row in rows)]).encode()
    )
    assert found(folder, csv_quoting="none") == rows

"""``corpus.encoding`` and ``corpus.errors``: what a user names is taken, and what a bad byte costs is a choice."""

import codecs
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import CorpusConfig, PrepConfig, check_config
from data_prep.contract.command_line import UserError
from data_prep.contract.shell.encodings import codec_of, holds_ascii
from data_prep.corpus.documents import Document, Reject
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.surveys import survey_and_pin
from tests.data_prep.corpus.test_nasty_corpus import documents, read, rejects

POLISH = "Gżegżółka usiadła na gałęzi, a źrebię zasnęło obok źródła."
JAPANESE = "駅前の小さな本屋で、古い地図を見つけました。"
RUSSIAN = "Вечером мы пили чай на веранде и слушали дождь."
NAMED = [
    (POLISH, name) for name in ("cp1250", "iso-8859-2", "cp852", "mac_latin2", "utf-8", "utf-16", "utf-32-be", "utf-7")
] + [(JAPANESE, name) for name in ("cp932", "euc_jp", "iso2022_jp", "utf-16-le")] + [
    (RUSSIAN, name) for name in ("koi8-r", "cp866", "iso-8859-5", "mac_cyrillic", "cp1251", "utf_8_sig")
]  # fmt: skip


@pytest.mark.parametrize(("text", "name"), NAMED)
def test_a_named_encoding_is_read_as_it_is_named(tmp_path, text, name):
    csv = text.replace(",", " ")
    contents = {
        "a.txt": text,
        "b.jsonl": "".join(json.dumps({"text": text, "n": n}, ensure_ascii=False) + "\n" for n in range(3)),
        "c.csv": f"id,text\n1,{csv}\n2,{csv}\n",
        "d.tsv": f"id\ttext\n1\t{text}\n",
    }
    for file, content in contents.items():
        (tmp_path / file).write_bytes(content.encode(name))
    items = read(tmp_path, encoding=name)
    assert documents(items) == [text] * 4 + [csv] * 2 + [text]
    assert rejects(items) == {}


@given(st.text(st.characters(codec="cp1250", exclude_categories=["C", "Z"]), min_size=1), st.sampled_from(["", "\n"]))
def test_any_text_of_an_encoding_comes_back(tmp_path_factory, text, end):
    path = tmp_path_factory.mktemp("named") / "a.txt"
    path.write_bytes((text + end).encode("cp1250"))
    assert documents(read(path, encoding="windows-1250")) == [text]


def test_each_entry_of_the_paths_has_its_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes(POLISH.encode("cp852"))
    (tmp_path / "b.txt").write_bytes(RUSSIAN.encode("mac_cyrillic"))
    (tmp_path / "c.txt").write_text(JAPANESE, encoding="utf-8")
    config = CorpusConfig(
        paths=tuple(str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt")),
        encoding=("cp852", "mac_cyrillic", "auto"),
    )
    files = find_corpus_files(config)
    assert [file.encoding for file in files] == ["cp852", "mac-cyrillic", "auto"]
    named = [survey_and_pin(file, config)[0].get("named_encoding") for file in files]
    assert named == ["cp852", "mac-cyrillic", None]
    assert [text for file in files for text in documents(read(file.path, encoding=file.encoding))] == [
        POLISH, RUSSIAN, JAPANESE,
    ]  # fmt: skip


def test_a_byte_order_mark_is_stronger_than_a_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(POLISH.encode("utf-8-sig"))
    (tmp_path / "b.txt").write_bytes(POLISH.encode("utf-16"))
    assert documents(read(tmp_path, encoding="cp1250")) == [POLISH] * 2


def test_a_file_named_twice_has_one_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(UserError, match=r"a\.txt is named twice, with the encodings cp1250 and auto"):
        find_corpus_files(CorpusConfig(paths=(str(path), str(tmp_path)), encoding=("cp1250", "auto")))


@pytest.mark.parametrize(
    ("paths", "encoding", "message"),
    [
        ("a.txt", "cp1249", "corpus.encoding 'cp1249' is no encoding that Python knows"),
        ("a.txt", "rot13", "'rot13' is no encoding"),
        ("a.txt", "unicode_escape", "'unicode_escape' is no encoding"),
        ("a.txt", "a\0b", "is no encoding"),
        (("a.txt", "b.txt"), ("auto",), r"corpus.encoding \['auto'\] for 2 corpus.paths"),
    ],
)
def test_a_wrong_name_is_told(paths, encoding, message):
    config = PrepConfig(output="shards", corpus=CorpusConfig(paths=paths, encoding=encoding))
    with pytest.raises(UserError, match=message):
        check_config(config)
    check_config(replace(config, corpus=CorpusConfig(paths=paths)))


BAD = [
    # name, bytes, encoding, text with errors replace
    ("middle", "fin å".encode() * 40_000 + b"\xe9 " + "fin å".encode() * 40_000, "auto", 1),
    ("cut", "vår är här ".encode() * 50_000 + b"\xc3", "auto", 1),
    ("ascii", b"plain English words " * 30_000 + b"\xff" + b" and more", "auto", 1),
    ("utf-8", "vår är här\n".encode() * 50_000 + b"\xff\n", "utf-8", 1),
    ("cp1253", "Καλημέρα κόσμε\n".encode("cp1253") * 40_000 + b"\xd2 \xff\n", "cp1253", 2),
    ("utf-16", "vår är\n".encode("utf-16-le") * 50_000 + b"\x00\xd8" + "x\n".encode("utf-16-le"), "utf-16-le", 1),
    ("utf-16-odd", "vår är här\n".encode("utf-16-le") * 50_000 + b"a", "utf-16-le", 1),
    ("gb18030", "今天天气很好。\n".encode("gb18030") * 50_000 + b"\xff\n", "gb18030", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "encoding", "bad"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_byte_costs_its_document_or_itself(tmp_path, name, content, encoding, bad):
    path = tmp_path / f"{name}.txt"
    path.write_bytes(content)
    strict = read(path, encoding=encoding)
    assert [type(item) for item in strict] == [Reject]
    assert strict[0].reason in ("undecodable", "damaged_file")
    mended = read(path, encoding=encoding, errors="replace")
    assert [type(item) for item in mended] == [Document]
    text = mended[0].text
    assert text.count("\ufffd") == bad
    codec = "utf-8" if encoding == "auto" else encoding
    assert text.replace("\ufffd", "").split() == content.decode(codec, "ignore").split()


def test_a_bad_byte_costs_no_other_document(tmp_path):
    lines = [POLISH.encode("cp1250"), b"\x81 " + POLISH.encode("cp1250"), POLISH.encode("cp1250")]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    items = read(tmp_path, encoding="cp1250", txt_documents="line")
    assert documents(items) == [POLISH] * 2
    assert rejects(items) == {"a.txt:2": "undecodable"}
    assert "no cp1250 from byte 0 on" in next(item.detail for item in items if isinstance(item, Reject))
    (tmp_path / "a.txt").write_bytes(
        "eins\nzwei\n".encode("utf-16-le") + b"\x00\xdc\n\0" + "drei\n".encode("utf-16-le")
    )
    items = read(tmp_path, encoding="utf-16-le", txt_documents="line")
    assert documents(items) == ["eins", "zwei", "drei"]
    assert rejects(items) == {"a.txt:3": "undecodable"}


def test_names_are_what_they_mean():
    assert codec_of("latin-1") == "cp1252"
    assert codec_of("GB2312") == "gb18030"
    assert codec_of("Shift_JIS") == "cp932"
    assert codec_of("windows-1250") == "cp1250"
    assert [name for name in ("utf-7", "utf-16", "hz", "iso2022_jp", "cp037") if holds_ascii(name)] == []
    assert all(map(holds_ascii, ("cp1250", "koi8-r", "big5", "gb18030", "cp949", "utf-8")))


def test_a_named_encoding_is_stronger_than_what_a_page_says(tmp_path):
    pytest.importorskip("fastwarc.warc")
    pytest.importorskip("resiliparse")
    from tests.data_prep.corpus.test_web_pages import PAGE, answer, record

    body = PAGE % POLISH.encode("cp1250")
    marked = codecs.BOM_UTF8 + POLISH.encode()
    (tmp_path / "a.warc").write_bytes(
        answer("200 OK", body, kind="text/html; charset=iso-8859-1")
        + answer("200 OK", POLISH.encode("cp1250"), kind="text/plain; charset=koi8-r")
        + answer("200 OK", marked, kind="text/plain; charset=koi8-r")
        + record("conversion", POLISH.encode("cp1250"), content_type="text/plain; charset=koi8-r")
        + record("resource", body, content_type="text/html; charset=koi8-r")
    )
    (tmp_path / "b.html").write_bytes(b'<meta charset="koi8-r">' + body)
    page = f"A page with a sentence of {POLISH}."
    config = {"encoding": "cp1250"}
    assert documents(read(tmp_path / "a.warc", **config)) == [page, POLISH, POLISH, POLISH, page]
    assert documents(read(tmp_path / "b.html", **config)) == [page]
    wide = "utf-16-le"  # of the records: the archive itself is in bytes
    (tmp_path / "c.warc").write_bytes(record("conversion", POLISH.encode(wide), content_type="text/plain"))
    assert documents(read(tmp_path / "c.warc", encoding=wide)) == [POLISH]


@pytest.mark.parametrize(("encoding", "bad"), [("utf-8", b"\xff"), ("auto", b"\xff")])
def test_bad_bytes_of_records_are_rejected_or_replaced(tmp_path, encoding, bad):
    pytest.importorskip("fastwarc.warc")
    from tests.data_prep.corpus.test_web_pages import answer, record

    body = "é, schön ".encode() * 3 + bad
    records = record("conversion", body, content_type="text/plain")
    if encoding != "auto":
        records += answer("200 OK", body, kind="text/plain")
    (tmp_path / "a.warc").write_bytes(records)
    strict = read(tmp_path / "a.warc", encoding=encoding)
    assert {item.reason for item in strict} == {"undecodable"}
    mended = documents(read(tmp_path / "a.warc", encoding=encoding, errors="replace"))
    assert mended == ["é, schön é, schön é, schön \ufffd"] * len(strict)

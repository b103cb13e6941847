"""Pages of crawls and of folders: what is a page becomes a document, what is none a reject that says what it is."""

import gzip
import sys

import pytest

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import Document, Reject
from tests.data_prep.corpus.test_corpus import check_cuts, read

pytest.importorskip("fastwarc.warc")
pytest.importorskip("resiliparse")

PAGE = b"<html><body><p>A page with a sentence of %s.</p></body></html>"


def record(kind, content, url="http://a.example/x", content_type="application/http; msgtype=response"):
    head = [
        "WARC/1.0",
        f"WARC-Type: {kind}",
        f"WARC-Target-URI: {url}",
        "WARC-Date: 2024-01-01T00:00:00Z",
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>",
        f"Content-Length: {len(content)}",
        *([f"Content-Type: {content_type}"] if content_type else []),
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


def answer(status, body, kind="text/html", **headers):
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return record("response", f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body)


RECORDS = [
    # (record, text of its document, or reason and detail of its reject; None: it holds no page)
    (record("warcinfo", b"software: x\r\n", content_type="application/warc-fields"), None),
    (record("request", b"GET / HTTP/1.1\r\n\r\n", content_type="application/http; msgtype=request"), None),
    (answer("200 OK", PAGE % b"its own"), "A page with a sentence of its own."),
    (answer("404 Not Found", PAGE % b"error"), ("http_status", "the server answered 404 Not Found")),
    (
        answer("301 Moved Permanently", PAGE % b"moving", Location="http://b.example/"),
        ("http_status", "the server answered 301 Moved Permanently, see http://b.example/"),
    ),
    (answer("503", b""), ("http_status", "the server answered 503")),
    (
        answer("200 OK", b"%PDF", kind="application/pdf"),
        ("content_type", "the content type is application/pdf, neither HTML nor plain text"),
    ),
    (answer("200 OK", b"plain text, na\xc3\xafve", kind="text/plain"), "plain text, naïve"),
    (answer("200 OK", b"<html><body></body></html>"), ("empty", "no text was found in the page")),
    (answer("200 OK", b""), ("empty", "the page is empty")),
    (record("revisit", b"HTTP/1.1 200 OK\r\n\r\n"), None),
    (record("resource", PAGE % b"a resource", content_type="text/html"), "A page with a sentence of a resource."),
    (
        record("resource", b"\x89PNG", content_type="image/png"),
        ("content_type", "the content type is image/png, neither HTML nor plain text"),
    ),
    (record("conversion", "Text einer Seite, schön".encode(), content_type="text/plain"), "Text einer Seite, schön"),
    (record("conversion", b"text without a type", content_type=None), "text without a type"),
    (record("metadata", b"a: b", content_type="application/warc-fields"), None),
    (record("conversion", b"caf\xc3 \xff\xfe \xc3\xa9", content_type="text/plain"), ("undecodable", None)),
    (
        answer("200 OK", PAGE % "späte Worte".encode("latin-1"), kind="text/html; charset=iso-8859-1"),
        "A page with a sentence of späte Worte.",
    ),
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.wet.gz", "a.wet"])
def test_every_record_with_a_page_is_a_document_or_a_reject_with_its_reason(tmp_path, name):
    content = b"".join(some for some, _ in RECORDS)
    members = b"".join(gzip.compress(some) for some, _ in RECORDS)
    (tmp_path / name).write_bytes(members if name.endswith("gz") else content)
    items = read(tmp_path)
    expected = [wanted for _, wanted in RECORDS if wanted is not None]
    assert [item.id for item in items] == [
        f"{name}:{number} 2024-01-01T00:00:00Z http://a.example/x" for number in range(1, len(expected) + 1)
    ]
    for item, wanted in zip(items, expected, strict=True):
        if isinstance(wanted, str):
            assert isinstance(item, Document)
            assert (item.text, item.url) == (wanted, "http://a.example/x")
        else:
            assert isinstance(item, Reject)
            assert (item.reason, wanted[1] and item.detail) == wanted
    check_cuts(tmp_path / name, CorpusConfig(), CleaningConfig(), [700, 2_000, 3_000], [2, 0, 3, 1])


def test_an_archive_that_ends_inside_a_record_says_so(tmp_path):
    content = record("conversion", b"whole", content_type="text/plain") + record("conversion", b"cut " * 50)
    (tmp_path / "a.warc").write_bytes(content[:-150])
    kept, cut = read(tmp_path)
    assert kept.text == "whole"
    assert (cut.reason, cut.detail) == ("damaged_file", "the file ends inside the record of 200 bytes")
    (tmp_path / "a.warc").write_bytes(record("request", b"GET /"))
    (reject,) = read(tmp_path)
    assert (reject.id, reject.reason) == ("a.warc", "empty")


def test_addresses_of_any_kind_fit_into_an_id(tmp_path):
    urls = ["http://a.example/" + "x" * 5_000, "<http://b.example/>", "http://a.example/caf\xe9 \x01"]
    (tmp_path / "a.warc").write_bytes(
        b"".join(record("conversion", b"text", url=url, content_type="text/plain") for url in urls)
    )
    ids = [item.id for item in read(tmp_path)]
    assert len(ids[0]) < 2_100
    assert ids[1] == "a.warc:2 2024-01-01T00:00:00Z http://b.example/"
    assert [identifier.encode().decode() for identifier in ids] == ids


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PAGE % "schöne Worte".encode(), "A page with a sentence of schöne Worte."),
        (b'<meta charset="iso-8859-2">' + PAGE % "książka".encode("iso-8859-2"), "A page with a sentence of książka."),
        ((PAGE % b"wide letters").decode().encode("utf-16"), "A page with a sentence of wide letters."),
        (b"just text", "just text"),
        (b"<html><script>x</script></html>", "empty"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("suffix", ["html", "htm", "html.gz"])
def test_files_of_pages(tmp_path, content, expected, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    (item,) = read(tmp_path / "*")
    assert item.id == f"a.{suffix}"
    assert getattr(item, "text", None) == expected or getattr(item, "reason", None) == expected


RUSSIAN = PAGE.decode() % "русских слов, которые читаются как русский язык"
GERMAN = PAGE.decode() % "schönen Wörtern über Tränen und Öfen"


@pytest.mark.parametrize(
    ("body", "kind", "text", "encoding"),
    [
        (GERMAN.encode(), "text/html; charset=iso-8859-1", GERMAN, None),
        (RUSSIAN.encode("cp1251"), "text/html", RUSSIAN, "cp1251"),
        (RUSSIAN.encode("cp1251"), "text/html; charset=windows-1251", RUSSIAN, "cp1251"),
        (RUSSIAN.encode("cp1251"), "text/html; charset=utf-8", RUSSIAN, "cp1251"),
        (RUSSIAN.encode("cp1251"), "text/html; charset=iso-8859-1", RUSSIAN, "cp1251"),
        (RUSSIAN.encode("koi8-r"), "text/html; charset=nonsense", RUSSIAN, "koi8_r"),
        (GERMAN.encode("utf-16"), "text/html; charset=utf-16", GERMAN, "utf-16-le"),
        (RUSSIAN.encode("cp1251"), "text/plain; charset=utf-8", RUSSIAN, "cp1251"),
    ],
)
def test_a_page_is_decoded_whatever_its_server_calls_its_encoding(tmp_path, body, kind, text, encoding):
    (tmp_path / "a.warc").write_bytes(answer("200 OK", body, kind=kind) + record("resource", body, content_type=kind))
    shown = text if kind.startswith("text/plain") else text.partition("<p>")[2].partition("</p>")[0]
    assert [(item.text, item.encoding) for item in read(tmp_path)] == [(shown, encoding)] * 2


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "text/html; charset=utf-8"])
def test_bad_bytes_in_a_page_cost_the_page_or_themselves(tmp_path, kind):
    body = PAGE % "schöne Wörter, ?, ähnlich über".encode().replace(b"?", b"\xff")
    (tmp_path / "a.warc").write_bytes(answer("200 OK", body, kind=kind))
    (tmp_path / "b.html").write_bytes(body)
    rejects = read(str(tmp_path / "*"))
    assert [item.reason for item in rejects] == ["undecodable"] * 2
    assert ["no UTF-8 from byte" in item.detail for item in rejects] == [True] * 2
    assert all("schöne Wörter, �, ähnlich" in item.text for item in read(str(tmp_path / "*"), errors="replace"))


def test_a_damaged_or_endless_page_is_one_reject(tmp_path, monkeypatch):
    (tmp_path / "a.html.gz").write_bytes(gzip.compress(PAGE % b"x")[:-9])
    (reject,) = read(tmp_path / "*.gz")
    assert reject.reason == "damaged_file"
    monkeypatch.setattr("data_prep.corpus.formats.html_format.PAGE_BYTES", 20)
    (tmp_path / "b.html").write_bytes(PAGE % b"x")
    (reject,) = read(tmp_path / "*.html")
    assert (reject.reason, reject.detail) == ("file_too_long", "more than 20 bytes")


def test_a_folder_is_not_searched_for_pages(tmp_path):
    (tmp_path / "index.html").write_bytes(PAGE % b"x")
    for path in (tmp_path, f"file://{tmp_path}"):
        with pytest.raises(UserError, match=r"no corpus file but \.html.*: give a glob, such as .*/\*\*/\*\.html"):
            read(path)
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path, f"file://{tmp_path}"):
        assert [item.id for item in read(path)] == ["a.txt"]
    for path in (tmp_path / "**/*.html", tmp_path / "index.html", f"file://{tmp_path}/*.html"):
        assert [item.id for item in read(path)] == ["index.html"]


def test_the_package_that_pages_need_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.html").write_bytes(PAGE)
    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    with pytest.raises(UserError, match=r"reading \.html files needs another .*: pip install 'narrowbert\[warc\]'"):
        read(tmp_path / "a.html")

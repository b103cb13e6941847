"""Encodings that nobody named: right, or rejected, and not wrong without a word."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CorpusConfig
from data_prep.corpus.encodings.decoder import Decoder
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.surveys import survey
from data_prep.report.statistics import encodings_of, notes_on_encodings
from tests.data_prep.corpus.encodings.paragraphs import PARAGRAPHS, cases, encoded
from tests.data_prep.corpus.test_nasty_corpus import documents, read, rejects


def outcome(folder, language: str, encoding: str) -> str:
    raw = encoded(language, encoding)
    assert raw is not None
    (folder / "a.txt").write_bytes(raw)
    items = read(folder / "a.txt")
    assert len(items) == 1
    if rejects(items):
        assert rejects(items) == {"a.txt": "undecodable"}
        return "rejected"
    return "right" if documents(items) == [unicodedata.normalize("NFC", PARAGRAPHS[language])] else "wrong"


def test_paragraphs_of_many_languages_in_many_encodings(tmp_path):
    tried = cases()
    assert len(tried) >= 60
    assert len({encoding for _, encoding in tried}) >= 30
    assert len({language for language, _ in tried}) >= 25
    found = Counter(outcome(tmp_path, language, encoding) for language, encoding in tried)
    assert found["right"] >= 0.95 * len(tried)
    assert found["wrong"] <= 0.02 * len(tried)


@pytest.mark.parametrize("language", PARAGRAPHS)
def test_utf_8_stays_what_it_is(tmp_path, language):
    text = unicodedata.normalize("NFC", PARAGRAPHS[language])
    for raw in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-32")):
        (tmp_path / "a.txt").write_bytes(raw)
        assert documents(read(tmp_path / "a.txt")) == [text]


PLAIN = [
    "Use ~{brackets~} or +plus+signs+ as in C++, a+b and ls -la; ~{ab~} is nothing.",
    "\x1b[1mbold\x1b[0m text of a terminal, and \x1b(B",
    "int main() { return a+AGE-b; } // x+y-z +++ ---",
    "~{ tilde } and +ABC- or +1-800-555",
    "Bäume +AGE- und ~{VPND~}"[6:14],
]


@pytest.mark.parametrize("text", PLAIN)
def test_ascii_that_looks_like_another_encoding_stays_ascii(text):
    assert Decoder().text(text.encode()) == text


@settings(max_examples=300)
@given(st.text())
def test_any_utf_8_without_escapes_is_read_as_it_is(text):
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    if "\x1b" not in text and "~{" not in text:
        assert Decoder().text(data) == text


def test_surrogates_in_utf_8_are_one_character(tmp_path):
    text = "Heute scheint die Sonne 😀, und morgen 🚲 fahren wir weg."
    raw = text.encode("utf-16-le").decode("utf-16-le").encode("utf-8")
    cesu = b"".join(
        character.encode("utf-16-be").decode("utf-16-be").encode()
        if character < "\U00010000"
        else b"".join(
            chr(int.from_bytes(character.encode("utf-16-be")[i : i + 2], "big")).encode("utf-8", "surrogatepass")
            for i in (0, 2)
        )
        for character in text
    )
    assert cesu != raw
    (tmp_path / "a.txt").write_bytes(cesu)
    assert documents(read(tmp_path / "a.txt")) == [text]


def test_iso_2022_behind_the_beginning_of_a_file(tmp_path):
    line = PARAGRAPHS["ja"]
    (tmp_path / "a.txt").write_bytes(
        b"plain English words\n" * 20_000 + line.encode("iso2022_jp") + b"\n\x1b$Bxy\x1b$zz\n"
    )
    items = read(tmp_path / "a.txt", txt_documents="line")
    assert documents(items)[20_000:] == [line]
    assert rejects(items) == {"a.txt:20002": "undecodable"}


def test_a_declaration_decides_what_letters_leave_open(tmp_path):
    page = b'<?xml version="1.0" encoding="ISO-8859-2"?><a>M\xb9</a>'
    (tmp_path / "a.txt").write_bytes(page)
    assert documents(read(tmp_path / "a.txt")) == [page.decode("iso-8859-2")]
    (tmp_path / "a.txt").write_bytes(page[43:])
    assert rejects(read(tmp_path / "a.txt")) == {"a.txt": "undecodable"}


def test_the_survey_of_a_file_has_its_encoding(tmp_path):
    contents = {
        "a.txt": PARAGRAPHS["hu"].encode("cp1250"),
        "b.txt": PARAGRAPHS["sk"].encode("cp1250"),
        "c.txt": PARAGRAPHS["ja"].encode("iso2022_jp"),
        "d.txt": PARAGRAPHS["ru"].encode("utf-16"),
        "e.txt": PARAGRAPHS["ru"].encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    config = CorpusConfig(paths=str(tmp_path))
    surveys = [survey(file, config) for file in find_corpus_files(config)]
    assert [found.get("encoding") for found in surveys] == ["cp1250", "cp1250", "iso2022_jp", "utf-16-le", None]
    counts = encodings_of(surveys)
    assert notes_on_encodings(counts) == [
        "2 files read as cp1250", "1 file read as iso2022_jp", "1 file read as utf-16-le",
    ]  # fmt: skip
    named = CorpusConfig(paths=str(tmp_path / "e.txt"), encoding="utf-8")
    assert encodings_of([survey(file, named) for file in find_corpus_files(named)]) == {}


def test_letters_of_a_code_page_that_are_signs_in_another(tmp_path):
    for text in ("Wrocław książka żółty źle łąka", "kőrösi tűzfű őszi nyűtt gyűrűk tövében"):
        for encoding in ("cp1250", "iso-8859-2"):
            try:
                (tmp_path / "a.txt").write_bytes(text.encode(encoding))
            except UnicodeEncodeError:
                continue
            assert documents(read(tmp_path / "a.txt")) in ([text], [])

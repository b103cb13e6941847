import gzip
import json

import pytest

from data_prep.command_line import UserError
from data_prep.config import CorpusConfig
from data_prep.corpus import builtin_documents, find_sources, fingerprints, prose, read_documents


def read(*paths, **options):
    config = CorpusConfig(paths=tuple(map(str, paths)), **options)
    return list(read_documents(find_sources(config), config))


def test_text_files_lose_byte_order_mark_and_carriage_returns(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (document,) = read(tmp_path / "a.txt")
    assert (document.id, document.text, document.source) == ("a.txt", "one\ntwo", "a.txt")


def test_json_lines_plain_and_gzip(tmp_path):
    lines = "\n".join(json.dumps({"body": text}) for text in ("one\r\ntwo", "  ", "déjà")) + "\n\n"
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    documents = read(tmp_path, text_field="body")
    assert [d.id for d in documents] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl.gz:1", "b.jsonl.gz:3"]
    assert [d.text for d in documents] == ["one\ntwo", "déjà"] * 2


def test_globs_and_folders_are_sorted_and_files_counted_once(tmp_path):
    for name in ("z.txt", "sub/b.txt", "sub/a.txt.gz", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"text") if name.endswith("gz") else b"text")
    assert [d.id for d in read(tmp_path)] == ["sub/a.txt.gz", "sub/b.txt", "z.txt"]
    assert [d.id for d in read(tmp_path / "*.txt", tmp_path / "sub" / "*", tmp_path)] == [
        "z.txt",
        "a.txt.gz",
        "b.txt",
    ]


def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path):
    for place in ("here", "there/deeper"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "sub" / "a.txt").write_text("text")
    assert read(tmp_path / "here") == read(tmp_path / "there/deeper")


def test_one_path_needs_no_list(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert len(find_sources(CorpusConfig(paths=str(tmp_path / "a.txt")))) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nb\xffad", r"a\.txt, line 2: not UTF-8"),
        ("a.txt", "fine".encode("utf-16"), r"a\.txt, line 1: not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'["text"]', r"a\.jsonl, line 1: no text in field 'text'"),
        ("a.jsonl", b'{"body": "x"}', r"line 1.*its fields are body.*--corpus\.text_field"),
        ("a.jsonl", b'{"text": 3}', r"line 1: no text"),
        ("a.txt.gz", gzip.compress(b"one\ntwo\n" * 999)[:-9], r"a\.txt\.gz, after line \d+: damaged gzip"),
        ("a.txt.gz", b"no gzip", "damaged gzip"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("path", ["none.txt", "none/*.txt", "empty", "a.md"])
def test_paths_that_name_nothing(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(UserError, match=path.replace("*", r"\*")):
        read(tmp_path / path)


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud800b \ud83d\ude00"}')
    assert read(tmp_path / "a.jsonl")[0].text == "a\ufffdb \U0001f600"


def test_fingerprints_follow_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    config = CorpusConfig(paths=(str(tmp_path / "a.txt"),))
    before = fingerprints(find_sources(config), config)
    assert before[0]["name"] == "a.txt"
    assert before[0]["size"] == 3
    (tmp_path / "a.txt").write_text("two")
    assert fingerprints(find_sources(config), config) != before


def test_builtin_corpus_is_repeatable_prose_of_the_asked_size():
    documents = builtin_documents(200_000)
    builtin_documents.cache_clear()
    assert builtin_documents(200_000) == documents
    assert 199_000 < sum(len(d.text.encode()) for d in documents) < 210_000
    assert len({d.id for d in documents}) == len(documents) > 20
    paragraphs = [p for d in documents for p in d.text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not any(">>>" in p for p in paragraphs)


def test_prose_keeps_sentences_and_drops_the_rest():
    text = """Return the sum of *all* the elements of ``array`` along an axis.

        A second paragraph that runs
        over two lines, in English.

        Parameters
        ----------
        axis : int
            The axis along which the sum of the elements is taken.

        Use it like this, which is easy to see::

            Not This Line Which Looks Like A Sentence Of English.

        >>> total([1, 2, 3])
        This output of the doctest is not a sentence either.

        ======  =======
        name    A value of the table which is long enough.
        ======  =======
        """
    assert prose(text) == [
        "Return the sum of all the elements of array along an axis.",
        "A second paragraph that runs over two lines, in English.",
        "The axis along which the sum of the elements is taken.",
        "Use it like this, which is easy to see:",
    ]

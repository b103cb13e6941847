import bz2
import contextlib
import functools
import gzip
import http.server
import io
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus import partitions as partitions_module
from data_prep.corpus import streams
from data_prep.corpus import surveys as surveys_module
from data_prep.corpus.builtin_corpus import builtin_documents, prose
from data_prep.corpus.documents import Document, Partition, Reject
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.formats import csv_format, line_formats
from data_prep.corpus.partitions import plan_partitions
from data_prep.corpus.reading import read_partition
from data_prep.corpus.surveys import survey
from tests.marks import long

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_content_size=False).compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(*paths, cleaning=None, **options):
    """Documents and rejects of whole files."""
    config = CorpusConfig(paths=tuple(map(str, paths)), **options)
    files = find_corpus_files(config)
    partitions = plan_partitions(files, [survey(file, config) for file in files])
    cleaning = cleaning or CleaningConfig()
    return [item for p in partitions for item in read_partition(files[p.file], p, config, cleaning)]


def texts(items):
    assert [item for item in items if isinstance(item, Reject)] == []
    return {item.key: item.text for item in items}


def reasons(items):
    return {item.id: item.reason for item in items if isinstance(item, Reject)}


def write_parquet(rows, name="text", **options):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(rows)), name: rows}), stream, **options)
    return stream.getvalue()


def test_globs_and_folders_are_sorted_and_files_counted_once(tmp_path):
    for name in ("z.txt", "sub/b.txt", "sub/a.txt.gz", "notes.md", ".hidden.txt", ".git/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"text") if name.endswith("gz") else b"text")
    assert list(texts(read(tmp_path))) == ["sub/a.txt.gz", "sub/b.txt", "z.txt"]
    assert list(texts(read(tmp_path / "*.txt", tmp_path / "sub" / "*", tmp_path))) == ["z.txt", "a.txt.gz", "b.txt"]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "corpus" / "sub" / "a.txt").write_text("text")
    (tmp_path / "corpus" / "sub" / "up").symlink_to(tmp_path / "corpus")
    (tmp_path / "other").symlink_to(tmp_path / "corpus")
    assert list(texts(read(tmp_path / "other"))) == ["sub/a.txt"]


def test_ids_do_not_depend_on_where_the_corpus_lies(tmp_path):
    for place in ("here", "there/deeper"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "sub" / "a.txt").write_text("text")
        (tmp_path / place / "sub" / "a.jsonl").write_text("damaged")
    assert read(tmp_path / "here") == read(tmp_path / "there/deeper")


def test_files_of_the_same_name_have_different_ids(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text(place)
    assert texts(read(tmp_path / "here", tmp_path / "there")) == {"a.txt": "here", "2//a.txt": "there"}


def test_names_that_are_no_text(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    (identifier,) = texts(read(tmp_path))
    assert identifier == "caf\\xe9.txt"


def test_weights_belong_to_their_entries(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("text")
    config = CorpusConfig(paths=(f"{tmp_path}/a.txt", f"{tmp_path}/[bc].txt"), weights=(2.0, 0.5))
    assert [file.weight for file in find_corpus_files(config)] == [2.0, 0.5, 0.5]
    with pytest.raises(UserError, match=r"a\.txt is named twice, with weights 2 and 0\.5"):
        find_corpus_files(CorpusConfig(paths=(f"{tmp_path}/a.txt", str(tmp_path)), weights=(2.0, 0.5)))


def test_one_path_needs_no_list(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert len(find_corpus_files(CorpusConfig(paths=str(tmp_path / "a.txt")))) == 1


@pytest.mark.parametrize("path", ["none.txt", "none/*.txt", "empty", "a.md", "fifo.txt", "*.md"])
def test_paths_that_name_nothing(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.md").write_text("text")
    os.mkfifo(tmp_path / "fifo.txt")
    with pytest.raises(UserError, match=path.replace("*", r"\*")):
        read(tmp_path / path)


def test_importing_is_light():
    code = "import sys, data_prep.corpus.reading; print({'numpy', 'pyarrow', 'fsspec', 'zstandard'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


ROWS = ["one\r\ntwo", "déjà, “vu”", 'with "quotes", commas\tand tabs', "日本語 😀"]
CLEAN = ["one\ntwo", *ROWS[1:]]


def csv_bytes(delimiter):
    quoted = ['"' + row.replace('"', '""') + '"' for row in ROWS]
    return "".join(f"{delimiter.join(fields)}\r\n" for fields in [["id", "text"], *(["1", q] for q in quoted)]).encode()


FILES = {
    "a.jsonl": "\n".join(json.dumps({"text": row, "n": 1}) for row in ROWS).encode() + b"\n\n",
    "a.txt": "\n\n".join(ROWS).encode(),
    "a.csv": csv_bytes(","),
    "a.tsv": csv_bytes("\t"),
    "a.parquet": write_parquet(ROWS, row_group_size=2),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", FILES)
def test_every_format_and_compression(tmp_path, name, suffix):
    (tmp_path / f"{name}{suffix}").write_bytes(COMPRESS[suffix](FILES[name]))
    found = texts(read(tmp_path, txt_documents="paragraph"))
    assert list(found.values()) == CLEAN
    assert next(iter(found)) == f"{name}{suffix}:{2 if name[2] in 'ct' and name[3] == 's' else 1}"


def test_text_files_lose_byte_order_mark_and_carriage_returns(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert texts(read(tmp_path)) == {"a.txt": "one\n\ntwo"}
    assert texts(read(tmp_path, txt_documents="line")) == {"a.txt:1": "one", "a.txt:3": "two"}
    assert texts(read(tmp_path, txt_documents="paragraph")) == {"a.txt:1": "one", "a.txt:3": "two"}


def test_another_field(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.csv").write_text("body\none\n")
    (tmp_path / "c.parquet").write_bytes(write_parquet(["one"], name="body"))
    items = read(tmp_path, text_field="body")
    assert [item.text for item in items if isinstance(item, Document)] == ["one"] * 3
    assert reasons(items) == {"a.jsonl:2": "no_text_field"}


def test_csv_quotes(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,text\n1,"two\nlines"\n2,5" pipe\n3,"stray quote here\n4,fine\n5\n6,"end" x\n7,"open\n'
    )
    items = read(tmp_path)
    assert [(i.id, i.text) for i in items if isinstance(i, Document)] == [
        ("a.csv:2", "two\nlines"),
        ("a.csv:4", '5" pipe'),
        ("a.csv:6", "fine"),
    ]
    expected = {"a.csv:5": "not_csv", "a.csv:7": "no_text_field", "a.csv:8": "not_csv", "a.csv:9": "not_csv"}
    assert reasons(items) == expected


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["a", None, "b"], pyarrow.large_string()),
        pyarrow.array([b"a", None, b"b"], pyarrow.binary()),
        pyarrow.array(["a", None, "b"]).dictionary_encode(),
        pyarrow.array(["a", None, "b"], pyarrow.string_view()),
    ],
    ids=str,
)
def test_parquet_column_types(tmp_path, column):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    items = read(tmp_path)
    assert [item.text for item in items if isinstance(item, Document)] == ["a", "b"]
    assert reasons(items) == {"a.parquet:2": "no_text_field"}


def test_parquet_without_a_text_column(tmp_path):
    (tmp_path / "a.parquet").write_bytes(write_parquet([1, 2]))
    (tmp_path / "b.parquet").write_bytes(write_parquet(["x"], name="body"))
    items = read(tmp_path)
    assert reasons(items) == {"a.parquet": "no_text_field", "b.parquet": "no_text_field"}
    assert "id, body" in items[1].detail


def test_warc_responses(tmp_path):
    warc = pytest.importorskip("fastwarc.warc")
    pytest.importorskip("resiliparse")
    page = "<html><head><title>T</title><script>var x;</script></head><body><p>Ein schöner Satz.</p></body></html>"
    bodies = [
        ("text/html; charset=iso-8859-1", page.encode("latin-1")),
        ("application/pdf", b"%PDF"),
        ("text/plain; charset=utf-8", "naïve".encode()),
    ]
    stream = io.BytesIO()
    for kind, body in bodies:
        record = warc.WarcRecord()
        record.init_headers(record_type=warc.WarcRecordType.response)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        record.set_bytes_content(head + body)
        record.headers["Content-Type"] = "application/http; msgtype=response"
        record.write(stream)
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.warc{suffix}"
        path.write_bytes(compress(stream.getvalue()))
        items = read(path)
        assert [item.text for item in items if isinstance(item, Document)] == ["Ein schöner Satz.", "naïve"]
        assert list(reasons(items).values()) == ["content_type"]
        check_cuts(path, CorpusConfig(), CleaningConfig(), [300, 700], [1, 2, 0])


def test_a_missing_extra_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "a.warc").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "fastwarc.warc", None)
    with pytest.raises(UserError, match=r"pip install 'narrowbert\[warc\]'"):
        read(tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def many_lines(path, count=1000):
    path.write_text("".join(json.dumps({"text": f"text {i} é"}) + "\n" for i in range(count)))


def test_urls_of_files_folders_and_globs(tmp_path):
    (tmp_path / "sub").mkdir()
    many_lines(tmp_path / "sub" / "a.jsonl")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text"))
    url = f"file://{tmp_path}"
    local = read(tmp_path)
    assert read(url) == local
    assert read(f"{url}/sub/*.jsonl") == read(tmp_path / "sub" / "a.jsonl") == read(f"{url}/sub/a.jsonl")
    assert [file.name for file in find_corpus_files(CorpusConfig(paths=f"{url}/**/*.jsonl"))] == ["sub/a.jsonl"]
    check_cuts(f"{url}/sub/a.jsonl", CorpusConfig(), CleaningConfig(), [100, 5_000, 20_000], [2, 0, 3, 1])


def test_urls_of_a_web_server_without_ranges(tmp_path):
    many_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.parquet").write_bytes(FILES["a.parquet"])
    with served(tmp_path) as url:
        assert read(f"{url}/a.jsonl") == read(tmp_path / "a.jsonl")
        assert read(f"{url}/*.jsonl") == read(tmp_path / "a.jsonl")
        assert read(f"{url}/b.parquet") == read(tmp_path / "b.parquet")
        check_cuts(f"{url}/a.jsonl", CorpusConfig(), CleaningConfig(), [100, 5_000, 20_000], [2, 0, 3, 1])


def test_urls_that_name_nothing(tmp_path):
    with served(tmp_path) as url:
        for path in (f"{url}/none.jsonl", f"file://{tmp_path}/none.txt", f"file://{tmp_path}/*.txt", "nothing://x.txt"):
            with pytest.raises(UserError, match="corpus"):
                read(path)
    with pytest.raises(UserError, match="corpus"):  # the server is gone
        read(f"{url}/a.jsonl")


def check_cuts(path, config, cleaning, cuts, order):
    """Partitions between any cuts, read in any order, hold together what the whole file holds."""
    (file,) = find_corpus_files(CorpusConfig(paths=str(path)))
    units = survey(file, config)["units"]
    cuts = [0, *sorted(min(cut, units) for cut in cuts), units]
    if path_is_plain := file.compression is None and "://" not in file.path:
        data = Path(file.path).read_bytes()
    whole = list(read_partition(file, Partition(index=0, file=0, begin=0, end=units), config, cleaning))
    parts = {}
    for index in [*order, *range(len(cuts) - 1)]:
        begin, end = cuts[index : index + 2]
        lines = data.count(b"\n", 0, begin) if path_is_plain and index % 2 else None
        partition = Partition(index=index, file=0, begin=begin, end=end, lines_before=lines)
        # An empty partition in the middle owns nothing; the one of an empty file owns its reject.
        items = list(read_partition(file, partition, config, cleaning)) if end > begin or not units else []
        assert parts.setdefault(index, items) == items
    found = [item for index in sorted(parts) for item in parts[index]]
    assert found == whole if units else found[: len(whole)] == whole
    return whole


FRAGMENTS = [
    b"a", b"bc ", b" ", b"\n", b"\n\n", b"\r\n", b" \n", b"\t", "é".encode(), "日".encode(), b"\xff", b"\xe9t", b"\0",
    b'"', b'""', b",", b'{"text": "x y"}\n', b'{"text": "x"}', b'{"n": 1}\n', b"text\n", b'1,"a\nb"\n', b"[]\n",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join),
    name=st.sampled_from(["a.jsonl", "a.txt", "a.csv"]),
    mode=st.sampled_from(["line", "paragraph", "file"]),
    suffix=st.sampled_from([*COMPRESS, "cut"]),
    small=st.booleans(),
    cuts=st.lists(st.integers(0, 100), max_size=5),
    draw=st.randoms(),
)
def test_any_partitions_hold_what_the_file_holds(tmp_path_factory, data, name, mode, suffix, small, cuts, draw):
    folder = tmp_path_factory.mktemp("any")
    if name == "a.csv":
        data = b"text,other\n" + data
    if suffix == "cut":
        name, content = f"{name}.gz", gzip.compress(data)[: -draw.randint(1, 8)]
    else:
        name, content = f"{name}{suffix}", COMPRESS[suffix](data)
    (folder / name).write_bytes(content)
    order = list(range(len(cuts) + 1))
    draw.shuffle(order)
    with pytest.MonkeyPatch.context() as patch:
        if small:  # so that every kind of block meets its edge
            for module in (streams, line_formats, csv_format):
                patch.setattr(module, "BLOCK_BYTES", 7)
            patch.setattr(streams, "HEAD_BYTES", 16)
            patch.setattr(line_formats, "_STRETCH_BYTES", 9)
            patch.setattr(line_formats, "LINE_BYTES", 24)
            patch.setattr(csv_format, "LINE_BYTES", 24)
            patch.setattr(csv_format, "RECORD_LINES", 3)
        cleaning = CleaningConfig(max_characters=5 if small else 1000)
        whole = check_cuts(folder / name, CorpusConfig(txt_documents=mode), cleaning, cuts, order)
    assert whole
    damaged = [item for item in whole if isinstance(item, Reject) and item.reason == "damaged_file"]
    if b"\0" not in data:  # many of them look like UTF-16, cut in the middle of a character
        assert len(damaged) == (suffix == "cut")
    keys = [item.key for item in whole if isinstance(item, Document)]
    assert len(set(keys)) == len(keys)


@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "bc", " ", "\n", "\n\n", " \n", "é", "日本"]), max_size=60).map("".join),
    suffix=st.sampled_from(list(COMPRESS)),
)
def test_lines_and_paragraphs_are_what_splitting_gives(tmp_path_factory, words, suffix):
    path = tmp_path_factory.mktemp("any") / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](words.encode()))
    found = {mode: read(path, txt_documents=mode) for mode in ("line", "paragraph", "file")}
    lines = [line.strip() for line in words.split("\n")]
    paragraphs = "\n".join(line or "\n" for line in lines).split("\n\n")
    expected = {"line": [line for line in lines if line], "paragraph": [p.strip() for p in paragraphs if p.strip()]}
    expected["file"] = [words.strip()] if words.strip() else []
    for mode, items in found.items():
        documents = [item.text for item in items if isinstance(item, Document)]
        assert ["".join(d.split()) for d in documents] == ["".join(e.split()) for e in expected[mode]]
        assert reasons(items) == ({} if documents else {path.name: "empty"})


def test_planned_partitions_cover_every_file_and_know_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(surveys_module, "LINE_STEP", 256)
    monkeypatch.setattr(partitions_module, "LINE_STEP", 256)
    monkeypatch.setattr(partitions_module, "MIN_PARTITION_BYTES", 600)
    monkeypatch.setattr(surveys_module, "_LINE_STEPS", 32)
    many_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.parquet").write_bytes(write_parquet(["some text"] * 1000, row_group_size=50, use_dictionary=False))
    (tmp_path / "d.txt").write_bytes(b"")
    config = CorpusConfig(paths=str(tmp_path))
    files = find_corpus_files(config)
    surveys = [survey(file, config) for file in files]
    assert json.loads(json.dumps(surveys)) == surveys
    partitions = plan_partitions(files, surveys)
    assert [p.index for p in partitions] == list(range(len(partitions)))
    data = (tmp_path / "a.jsonl").read_bytes()
    for number, found in enumerate(surveys):
        own = [p for p in partitions if p.file == number]
        assert [p.begin for p in own] == [0, *(p.end for p in own[:-1])]
        assert own[-1].end == found["units"]
        assert (len(own) > 5) == (number < 3)
        assert number or all(p.lines_before == data.count(b"\n", 0, p.begin) for p in own)
    items = {p.index: list(read_partition(files[p.file], p, config, CleaningConfig())) for p in partitions[::-1]}
    documents = [d for index in sorted(items) for d in items[index] if isinstance(d, Document)]
    assert [d.id for d in documents[:1000]] == [f"a.jsonl:{i + 1}" for i in range(1000)]
    assert [d.text for d in documents[:1000]] == [d.text for d in documents[1000:2000]]
    assert len(documents) == 3000
    assert reasons(items[len(partitions) - 1]) == {"d.txt": "empty"}


def test_partition_sizes_follow_from_all_files_together():
    file = find_corpus_files(CorpusConfig())[0].__class__(
        name="a", path="a", weight=1, kind="jsonl", compression="gzip"
    )

    def sizes(*totals):
        return [
            p.end - p.begin for p in plan_partitions([file] * len(totals), [{"units": t, "bytes": t} for t in totals])
        ]

    assert sizes(60 << 20) == [4 << 20] * 15
    assert max(sizes(1 << 40)) == 64 << 20
    assert len(sizes(100 << 30)) == pytest.approx(2048, rel=0.05)
    assert sizes(0, 5) == [0, 5]


def test_a_worker_decompresses_a_file_once(tmp_path, monkeypatch):
    many_lines(tmp_path / "a.jsonl", 5000)
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (file,) = find_corpus_files(CorpusConfig(paths=str(path)))
    opened = []
    monkeypatch.setattr(
        streams, "open_raw", lambda path, original=streams.open_raw: opened.append(path) or original(path)
    )
    config = CorpusConfig()
    for index in (0, 2, 5, 1):
        partition = Partition(index=0, file=0, begin=index * 10_000, end=(index + 1) * 10_000)
        assert list(read_partition(file, partition, config, CleaningConfig()))
    assert len(opened) == 2  # forward to 5 in one stream, then from the beginning to 1


def test_fingerprints_follow_the_content(tmp_path):
    config = CorpusConfig(paths=str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("one")
    before = survey(find_corpus_files(config)[0], config)
    assert (before["name"], before["size"]) == ("a.txt", 3)
    (tmp_path / "a.txt").write_text("two")
    assert survey(find_corpus_files(config)[0], config) != before
    compressed = gzip.compress(b"text" * 999)
    (tmp_path / "b.txt.gz").write_bytes(compressed[:-30] + b"damage" + bytes(99))
    (file,) = find_corpus_files(CorpusConfig(paths=str(tmp_path / "b.txt.gz")))
    assert survey(file, config)["size"] == len(compressed) - 30 + 6 + 99  # hashed to its end all the same


def test_long_documents_are_split_at_white_space_and_nothing_is_lost(tmp_path):
    words = [f"word{i}é" for i in range(5_000)]
    (tmp_path / "a.txt").write_text(" ".join(words))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": " ".join(words)}))
    items = read(tmp_path, cleaning=CleaningConfig(max_characters=1000))
    for name in ("a.txt", "b.jsonl:1"):
        parts = [item for item in items if item.id == name]
        assert [item.part for item in parts] == list(range(len(parts)))
        assert [word for item in parts for word in item.text.split()] == words
        assert all(900 < len(item.text) <= 1000 for item in parts[:-1])
    assert items[1].key == "a.txt#1"


def test_the_length_limits(tmp_path):
    (tmp_path / "a.txt").write_text("  short \nlong enough\n")
    items = read(tmp_path, txt_documents="line", cleaning=CleaningConfig(min_characters=6))
    assert reasons(items) == {"a.txt:1": "too_short"}
    # NFC makes these three characters long each.
    (tmp_path / "a.txt").write_text("\ufb2c" * 100)
    items = read(tmp_path, cleaning=CleaningConfig(max_characters=50))
    assert sum(len(item.text) for item in items) == 300
    assert max(len(item.text) for item in items) <= 50


def test_a_json_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(line_formats, "LINE_BYTES", 1000)
    long = json.dumps({"text": "x" * 2000})
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one"}}\n{long}\n{{"text": "three"}}\n{long}')
    items = read(tmp_path)
    assert [item.id for item in items if isinstance(item, Document)] == ["a.jsonl:1", "a.jsonl:3"]
    assert reasons(items) == {"a.jsonl:2": "line_too_long", "a.jsonl:4": "line_too_long"}


CHILD = """
import re, sys
from data_prep.corpus.reading import read_partition
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.partitions import plan_partitions
from data_prep.corpus.surveys import survey
from data_prep.config import CleaningConfig, CorpusConfig
config = CorpusConfig(paths=sys.argv[1], txt_documents=sys.argv[2])
(file,) = find_corpus_files(config)
found = survey(file, config)
count = characters = 0
for partition in plan_partitions([file], [found]):
    for item in read_partition(file, partition, config, CleaningConfig()):
        count += 1
        characters += len(getattr(item, "text", ""))
# Not ru_maxrss: that of a child begins with its parent's, however small the child.
print(count, characters, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "line_end"),
    [
        long("a.txt", "file", b" "),
        ("a.txt.gz", "line", b" "),
        long("a.txt.zst", "paragraph", b"\n"),
        ("a.jsonl.gz", "file", b" "),
        ("a.csv", "file", b"\n"),
        long("a.txt", "paragraph", b""),
    ],
)
def test_memory_stays_small_whatever_the_file(tmp_path, name, mode, line_end):
    """240 MB: one document, one line, one paragraph, one quoted field that never ends, one word."""
    block = (b"words" * 200 + line_end) * 1000
    opened = {".gz": gzip.open, "zst": zstandard.open}.get(name[-3:], open)
    with opened(tmp_path / name, "wb") as stream:
        stream.write({"j": b'{"text": "', "c": b'text\n"'}.get(name[2], b""))
        for _ in range(240):
            stream.write(block)
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / name, mode], capture_output=True, text=True, check=True
    )
    count, characters, peak_kb = map(int, ended.stdout.split())
    assert peak_kb < 350_000
    if name.startswith("a.txt"):
        assert characters == pytest.approx(240_000_000, rel=0.01)
        assert 240 <= count <= 260
    if name == "a.csv":  # one line is given up, the others are one-field records
        assert count == 240_000


@pytest.mark.slow
def test_files_that_decompress_to_much_more_than_they_are(tmp_path):
    for name, opened in (("a.txt.gz", gzip.open), ("a.txt.zst", zstandard.open)):
        with opened(tmp_path / name, "wb") as stream:
            for _ in range(192):
                stream.write(bytes(1 << 20))
        ended = subprocess.run(
            [sys.executable, "-c", CHILD, tmp_path / name, "file"], capture_output=True, text=True, check=True
        )
        count, characters, peak_kb = map(int, ended.stdout.split())
        assert (count, characters) == (1, 0)  # a reject
        assert peak_kb < 350_000


def test_builtin_corpus_is_repeatable_prose_of_the_asked_size():
    documents = builtin_documents(200_000)
    builtin_documents.cache_clear()
    assert builtin_documents(200_000) == documents
    assert 199_000 < sum(len(text.encode()) for _, text in documents) < 210_000
    assert len(dict(documents)) == len(documents) > 20
    paragraphs = [p for _, text in documents for p in text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not any(">>>" in p for p in paragraphs)


def test_builtin_corpus_is_read_like_a_file():
    config = CorpusConfig(builtin_max_bytes=200_000)
    (file,) = find_corpus_files(config)
    found = survey(file, config)
    count = found["units"]
    items = []
    for begin, end in ((0, 5), (5, count)):
        partition = Partition(index=0, file=0, begin=begin, end=end)
        items += read_partition(file, partition, config, CleaningConfig())
    assert [(item.id, item.text) for item in items] == [*builtin_documents(200_000)]


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

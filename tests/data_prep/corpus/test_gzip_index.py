"""Large .gz files: a partition in the middle is read from there, and gives what it gives without an index."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.config import CleaningConfig, CorpusConfig, PrepConfig
from data_prep.corpus import partitions, raw_files, reading
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.formats import gzip_index
from data_prep.corpus.formats.gzip_index import GzipIndex, make_index, needs_index
from data_prep.corpus.surveys import survey_and_pin
from data_prep.stages.build import build_shards, run_task
from tests.data_prep.conftest import NoProgress, no_progress

TEXT_BYTES = 18 << 20


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_index, "LARGE_TEXT_BYTES", 1 << 22)
    monkeypatch.setattr(gzip_index, "MIN_SPACING", 1 << 20)
    monkeypatch.setattr(gzip_index, "BUFFER_BYTES", 1 << 21)
    monkeypatch.setattr(reading, "_resting", None)


def text_lines(end: str = "\n", special: str = "") -> bytes:
    """18 MB of lines of 10 to 80 kB, some of them blank."""
    draw = random.Random(1)
    block = "".join(draw.choices("abcdefgh" + special, k=80_000))
    lines = []
    while sum(map(len, lines)) < TEXT_BYTES:
        lines += [f"{len(lines)} {block[: draw.randint(10_000, 80_000)]}", *([""] if draw.random() < 0.2 else [])]
    return (end.join(lines) + end).encode("latin-1")


def as_json_lines(text: bytes) -> bytes:
    return b"".join(json.dumps({"text": line}).encode() + b"\n" for line in text.decode().splitlines())


def two_members(content: bytes) -> bytes:
    middle = len(content) // 3
    return gzip.compress(content[:middle], 1) + gzip.compress(content[middle:], 1) + bytes(1000)


def fast(content: bytes) -> bytes:
    return gzip.compress(content, 1)


def found(path: Path, config: CorpusConfig) -> tuple[CorpusFile, dict, bool]:
    (file,) = find_corpus_files(replace(config, paths=(str(path),)))
    survey, file, whole = survey_and_pin(file, config)
    return file, survey, whole


@pytest.mark.parametrize(
    ("name", "content", "compress", "documents"),
    [
        ("a.jsonl.gz", as_json_lines(text_lines()), fast, "file"),
        ("a.jsonl.gz", as_json_lines(text_lines()), two_members, "file"),
        ("a.txt.gz", text_lines("\r\n"), fast, "line"),
        ("a.txt.gz", text_lines(special="é"), fast, "paragraph"),
    ],
    ids=["jsonl", "two members", "lines", "paragraphs of latin-1"],
)
def test_each_partition_gives_the_same_with_an_index(
    name: str, content: bytes, compress: Callable[[bytes], bytes], documents: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / name
    path.write_bytes(compress(content))
    config = CorpusConfig(txt_documents=documents)
    file, survey, whole = found(path, config)
    assert whole
    assert needs_index(file, survey)
    assert make_index(file, survey, tmp_path / "indexes")
    index = GzipIndex(tmp_path / "indexes", survey["sha256"])
    cut = partitions.plan_partitions([file], [survey])
    assert len(cut) >= 4
    expected = [list(reading.read_partition(file, part, config, CleaningConfig())) for part in cut]
    assert all(expected)
    fetched = []
    fetch = raw_files._Local.fetch
    monkeypatch.setattr(
        raw_files._Local, "fetch", lambda self, begin, end: fetched.append((begin, end)) or fetch(self, begin, end)
    )
    for part, items in zip(cut, expected, strict=True):
        reading._resting = None  # as in a process that begins with this partition
        fetched.clear()
        assert list(reading.read_partition(file, part, config, CleaningConfig(), index)) == items
        _, *behind = sorted(fetched)  # the beginning tells the encoding
        span = max(end for _, end in behind) - min(begin for begin, _ in behind)
        assert span < path.stat().st_size * 0.6, "of five partitions, and windows of 1 MB"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-100], id="cut short"),
        pytest.param(lambda data: data + b"more", id="something else behind"),
        pytest.param(lambda data: data[: len(data) // 2] + b"damage" + data[len(data) // 2 + 6 :], id="damaged"),
    ],
)
def test_a_damaged_file_gets_no_index(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(fast(as_json_lines(text_lines()))))
    _, _, whole = found(path, CorpusConfig())
    assert not whole, "its last reject would be lost, since an index does not tell where the file is cut short"


def test_text_of_another_width_gets_no_index(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(fast(as_json_lines(text_lines()).decode().encode("utf-16")))
    file, survey, _ = found(path, CorpusConfig())
    assert not make_index(file, survey, tmp_path / "indexes")


def test_shards_are_the_same_with_an_index(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "a.jsonl.gz"
    texts = [
        " ".join(random.Random(number).choices(["house", "green", "walking", "boil"], k=9_000)) for number in range(90)
    ]
    corpus.write_bytes(fast(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts * 2)))
    config = replace(tiny_config, corpus=CorpusConfig(paths=(str(corpus),)), seq_length=512, keep_documents=True)

    def tars(name: str) -> dict[str, bytes]:
        build_shards(replace(config, output=str(tmp_path / name)), no_progress)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*.tar"))}

    used = []
    opened = GzipIndex.open_text
    monkeypatch.setattr(GzipIndex, "open_text", lambda self, *where: used.append(where) or opened(self, *where))
    indexed = tars("indexed")
    assert used
    used.clear()
    monkeypatch.setattr(gzip_index, "LARGE_TEXT_BYTES", 1 << 40)
    assert tars("plain") == indexed
    assert not used


def test_where_no_index_can_be_made_it_is_said(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "a.jsonl.gz"
    corpus.write_bytes(fast(as_json_lines(text_lines())[: 5 << 20]))
    monkeypatch.setattr("data_prep.stages.work_folder.make_index", lambda *_: False)
    progress = NoProgress()
    config = replace(tiny_config, corpus=CorpusConfig(paths=(str(corpus),)), output=str(tmp_path / "shards"))
    run_task(config, "plan", None, progress)
    assert f"{corpus} gets no index: each process that reads a part of it reads all before that too" in progress.notes

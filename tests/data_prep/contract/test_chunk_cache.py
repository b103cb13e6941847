"""Chunks of shards behind a URL: fetched alone, kept within a limit, from a real server that knows ranges."""

import functools
import http.server
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_split import ShardSplit
from data_prep.contract.shards import open_shards
from tests.data_prep.fault_servers import running
from tests.data_prep.shard_folders import make_folder


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder and ranges of its files; remembers how many bytes of shards it has sent, and fails when told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(RangeHandler, directory=str(folder)))
        self.sent: list[int] = []
        self.failures: list[int | str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards"


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        assert isinstance(self.server, RangeServer)
        failure = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(failure, int):
            self.send_error(failure)
            return
        begin, end = int(asked[1]), int(asked[2]) + 1
        content = path.read_bytes()[begin:end]
        self.server.sent.append(len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if failure == "cut" else content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """Serves tmp_path/served, in which `shards` is a sound shard folder."""
    monkeypatch.setenv("NARROWBERT_CACHE", str(tmp_path / "cache"))
    make_folder(tmp_path / "served" / "shards")
    with running(RangeServer(tmp_path / "served")) as server:
        yield server


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/chunks").glob("*/*/*"))


def lengths(split: ShardSplit) -> list[int]:
    return [split.index.place(chunk)[1] for chunk in range(split.index.num_chunks)]


def test_a_chunk_costs_its_own_bytes_once_on_a_machine(server, tmp_path):
    theirs = open_shards(tmp_path / "served/shards").split("train")
    for split in (open_shards(server.url).split("train"), pickle.loads(pickle.dumps(open_shards(server.url)))):
        split = split if isinstance(split, ShardSplit) else split.split("train")
        for chunk in (1, 4, 1):
            for name, array in theirs.chunk(chunk).items():
                np.testing.assert_array_equal(split.chunk(chunk)[name], array)
    assert server.sent == [lengths(theirs)[1], lengths(theirs)[4]]
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_threads_that_ask_at_once_fetch_a_chunk_once(server):
    splits = [open_shards(server.url).split("train") for _ in range(4)]  # each with a cache of its own
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: splits[n % 4].chunk(n // 4 % 2)["sequence_ids"][0], range(32)))
    assert len(set(found)) == 2
    assert sorted(server.sent) == sorted(lengths(splits[0])[:2])


def test_the_chunks_used_longest_ago_make_room(server, tmp_path, monkeypatch):
    split = open_shards(server.url).split("train")
    sizes = lengths(split)
    assert len(sizes) >= 6
    limit = sum(sorted(sizes)[-4:])
    monkeypatch.setenv("NARROWBERT_CACHE_BYTES", str(limit))
    for chunk in range(len(sizes)):
        open_shards(server.url).split("train").chunk(chunk)
        open_shards(server.url).split("train").chunk(0)  # stays in use
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= limit
    assert {"0", str(len(sizes) - 1)} <= {path.name for path in kept(tmp_path)}
    assert server.sent == sizes, "what is in use is not fetched again"
    open_shards(server.url).split("train").chunk(1)
    assert server.sent == [*sizes, sizes[1]]


def test_a_damaged_copy_is_fetched_again_and_a_damaged_source_named(server, tmp_path):
    split = open_shards(server.url).split("train")
    ids = split.chunk(0)["input_ids"].copy()
    (copy,) = kept(tmp_path)
    sound = copy.read_bytes()
    for damage in (sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1]), b""):
        copy.unlink()  # the old one stays as it is for who reads it
        copy.write_bytes(damage)
        np.testing.assert_array_equal(open_shards(server.url).split("train").chunk(0)["input_ids"], ids)
        assert copy.read_bytes() == sound
    shard = tmp_path / "served/shards/train-00001.tar"
    chunk = split.index.chunks(1).start
    content = bytearray(shard.read_bytes())
    content[split.index.place(chunk)[0] + 200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"shard {server.url}/train-00001\.tar, chunk 0: .*check the source"):
        split.chunk(chunk)
    assert kept(tmp_path) == [copy]


@pytest.mark.parametrize("failure", [503, 429, "cut"])
def test_what_may_pass_is_tried_again(server, failure):
    split = open_shards(server.url).split("train")
    server.failures = [failure] * 2
    assert len(split.chunk(0)["input_ids"])


def test_what_will_not_pass_is_one_line(server, tmp_path, monkeypatch):
    split = open_shards(server.url).split("train")
    server.failures = [403]
    with pytest.raises(UserError, match=rf"cannot read {server.url}/train-00000\.tar: the server answers 403"):
        split.chunk(0)
    monkeypatch.setenv("NARROWBERT_CACHE_BYTES", "32 GB")
    with pytest.raises(UserError, match="NARROWBERT_CACHE_BYTES is '32 GB': give a number of bytes"):
        split.chunk(0)

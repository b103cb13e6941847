"""Shards behind a URL, from a real server on this machine."""

import functools
import http.server
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.contract.command_line import UserError
from data_prep.contract.manifest import compute_root_hash, manifest_bytes
from data_prep.contract.redaction import redact_urls
from data_prep.contract.remote import RemoteFolder
from data_prep.contract.shards import open_shards
from data_prep.verification.folder import verify
from tests.data_prep.fault_servers import running
from tests.data_prep.shard_folders import as_schema_1, make_folder


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, remembers what was asked for, and fails as often as told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.asked: list[str] = []
        self.asked_whole: list[str] = []  # it knows no ranges: a reader that asks for one asks again for the file
        self.failures: list[int | str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/shards"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        if "Range" not in self.headers:
            self.server.asked_whole.append(self.path)
        failure = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(failure, int):
            self.send_error(failure)
        elif failure == "cut":  # says more bytes than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves tmp_path/served, in which `shards` is a sound shard folder."""
    monkeypatch.setenv("NARROWBERT_CACHE", str(tmp_path / "cache"))
    make_folder(tmp_path / "served" / "shards")
    with running(Server(tmp_path / "served")) as server:
        yield server


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return tmp_path / "served" / "shards"


def cached(tmp_path: Path, name: str = "*") -> list[Path]:
    return sorted((tmp_path / "cache").glob(f"*/{name}"))


def test_the_rows_are_those_of_the_folder_and_each_file_is_fetched_once(server, served, tmp_path):
    ours, theirs = open_shards(server.url), open_shards(served)
    assert (ours.root_hash, ours.location) == (theirs.root_hash, server.url)
    assert ours.tokenizer_path.read_bytes() == theirs.tokenizer_path.read_bytes()
    assert cached(tmp_path, "*.tar") == [], "shards are fetched when they are touched"
    split = pickle.loads(pickle.dumps(ours.split("train")))
    for index in range(3):
        split.chunk(index)
    assert [path.name for path in cached(tmp_path, "*.tar")] == ["train-00000.tar"]
    for _ in range(2):
        for name in ("train", "validation"):
            split, expected = open_shards(server.url).split(name), theirs.split(name)
            for index in range(len(expected.chunk_rows)):
                for field, array in expected.chunk(index).items():
                    np.testing.assert_array_equal(split.chunk(index)[field], array)
    assert verify(server.url).problems == ()
    tars = [path for path in server.asked_whole if path.endswith(".tar")]
    assert sorted(tars) == sorted(f"/shards/{path.name}" for path in served.glob("*.tar"))
    for name in ("tokenizer.json", "train.index.safetensors", "validation.index.safetensors"):
        assert server.asked.count(f"/shards/{name}") == 1


def test_two_versions_and_two_urls_do_not_mix(server, served, tmp_path):
    first = open_shards(server.url).split("train")
    before = first.chunk(0)["input_ids"].copy()
    shutil.rmtree(served)
    make_folder(served, seed=7)
    shutil.copytree(served, served.parent / "other")
    second = open_shards(server.url)
    assert (second.split("train").chunk(0)["lengths"] == open_shards(served).split("train").chunk(0)["lengths"]).all()
    assert not np.array_equal(second.split("train").chunk(0)["input_ids"], before)
    other = open_shards(server.url.replace("shards", "other"))
    assert len({first._files.path, second.path, other.path}) == 3
    assert all(path.parent == tmp_path / "cache" for path in (second.path, other.path))


@pytest.mark.parametrize("damage", ["short", "flipped"])
def test_a_damaged_download_is_named_and_deleted(server, served, tmp_path, damage):
    path = served / "train-00001.tar"
    sound = path.read_bytes()
    path.write_bytes(sound[:-512] if damage == "short" else sound[:900] + b"!" + sound[901:])
    split = open_shards(server.url).split("train")
    split.chunk(0)
    with pytest.raises(UserError, match=rf"{server.url}/train-00001\.tar has .* deleted"):
        split.chunk(3)
    assert [found.name for found in cached(tmp_path, "[!.]*.tar*")] == ["train-00000.tar"]
    assert any("train-00001.tar has" in problem for problem in verify(server.url).problems)
    path.write_bytes(sound)
    split.chunk(3)
    (served / "tokenizer.json").write_bytes(b"{}")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=rf"{server.url}/tokenizer\.json has not the sha256 .* deleted"):
        open_shards(server.url)
    assert cached(tmp_path, "tokenizer.json") == []


def test_a_copy_damaged_in_the_cache_is_named_deleted_and_fetched_again(server, tmp_path):
    open_shards(server.url).split("train").chunk(0)
    (copy,) = cached(tmp_path, "*.tar")
    sound = copy.read_bytes()
    copy.write_bytes(sound[:900] + bytes([sound[900] ^ 1]) + sound[901:])
    with pytest.raises(UserError, match=rf"{server.url}/train-00000\.tar, chunk 0: .*{copy} has been deleted"):
        open_shards(server.url).split("train").chunk(0)
    assert not copy.exists()
    open_shards(server.url).split("train").chunk(0)
    copy.write_bytes(sound[:100])  # of another size: nothing that was ever checked
    copy.with_name("train-00000.tar.temp12345").write_bytes(b"left by a killed process")
    open_shards(server.url).split("train").chunk(0)
    assert [path.read_bytes() for path in cached(tmp_path, "train-00000.tar*")] == [sound]


@pytest.mark.parametrize("failure", [500, 503, 429, "cut"])
def test_what_may_pass_is_tried_again(server, failure):
    server.failures = [failure] * 3
    opened = open_shards(server.url)
    server.failures = [failure]
    opened.split("train").chunk(0)
    server.failures = [failure] * 4
    with pytest.raises(UserError, match=rf"cannot read {server.url}/manifest\.json: "):
        open_shards(server.url)


def test_what_will_not_pass_is_one_line(server, served, tmp_path, monkeypatch):
    (served / "train-00001.tar").unlink()
    split = open_shards(server.url).split("train")
    asked = len(server.asked)
    with pytest.raises(UserError, match=rf"cannot read {server.url}/train-00001\.tar: it is not there"):
        split.chunk(3)
    assert len(server.asked) == asked + 1
    server.failures = [403]
    with pytest.raises(UserError, match="the server answers 403"):
        open_shards(server.url)
    with pytest.raises(UserError, match=r"other/manifest\.json: it is not there"):
        open_shards(server.url.replace("shards", "other"))
    (served.parent / "index").mkdir()
    (served.parent / "index" / "manifest.json").write_text("<html>log in")
    with pytest.raises(UserError, match=r"index/manifest\.json is damaged"):
        open_shards(server.url.replace("shards", "index"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NARROWBERT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot keep train\.index\.safetensors in the cache"):
        open_shards(server.url)


def test_a_server_that_is_gone_is_one_line(tmp_path):
    with Server(tmp_path) as closed:
        url = closed.url
    with pytest.raises(UserError, match=f"cannot read {url}/manifest.json: the host cannot be reached"):
        open_shards(url)


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch {marker}",
        "pipe:touch {marker} # http://host",
        "file:///etc",
        "ftp://host/shards",
        "simplecache::http://host/shards",
        "http://host/a::pipe:touch {marker}",
        "narrowbert:http://host/shards",
    ],
)
def test_other_schemes_are_refused_and_no_shell_runs(tmp_path, url):
    marker = tmp_path / "ran"
    with pytest.raises(
        UserError, match=r"shards are not read from .*: name a folder, or a URL that begins with http://"
    ):
        open_shards(url.format(marker=marker))
    assert not marker.exists()


def test_webdatasets_rewriting_variable_cannot_start_a_shell(server, tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    monkeypatch.setenv("GOPEN_REWRITE", f"http://=pipe:touch {marker} # ")
    open_shards(server.url).split("train").chunk(0)
    assert not marker.exists()


def test_names_in_a_remote_manifest_cannot_leave_the_cache(server, served):
    manifest = json.loads((served / "manifest.json").read_text())
    manifest["splits"]["train"]["index"]["name"] = "../../escaped.tar"
    manifest["root_hash"] = compute_root_hash(manifest)
    (served / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(UserError, match=r"manifest\.json names '../../escaped\.tar' in place of train\.index"):
        open_shards(server.url)
    make_folder(served.with_name("fresh"))
    as_schema_1(served.with_name("fresh"), lambda old: old["splits"]["train"]["shards"][0].update(name="../../x.tar"))
    with pytest.raises(UserError, match=r"manifest\.json names '../../x\.tar' in place of train-00000\.tar"):
        open_shards(server.url.replace("shards", "fresh"))


def test_a_signed_query_goes_with_every_file_and_shows_nowhere(server, served, tmp_path):
    (served / "train-00001.tar").unlink()
    shards = open_shards(server.url.replace("127.0.0.1", "user:secret@127.0.0.1") + "/?sig=secret")
    with pytest.raises(UserError) as refused:
        shards.split("train").chunk(3)
    assert "secret" not in str(refused.value)
    assert f"{server.url}/train-00001.tar" in str(refused.value)
    assert {path.rpartition("/")[0] for path in server.asked} == {"/shards"}
    assert all(path.endswith("?sig=secret") for path in server.asked)
    assert not any("secret" in str(path) for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.slow
def test_processes_that_start_at_once_fetch_each_file_once(server, served):
    code = (
        "import sys; from data_prep.contract.shards import open_shards\n"
        "from data_prep.verification.folder import verify\n"
        "split = open_shards(sys.argv[1]).split('train')\n"
        "for index in range(len(split.chunk_rows)): split.chunk(index)\n"
        "print(verify(sys.argv[1]).problems)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", code, server.url], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == ["()\n"] * 3
    tars = [path for path in server.asked_whole if path.endswith(".tar")]
    assert sorted(tars) == sorted(f"/shards/{path.name}" for path in served.glob("*.tar"))


@pytest.mark.parametrize("scheme", ["abfs", "abfss", "az"])
def test_an_azure_container_is_part_of_the_place_and_a_password_is_not(scheme: str) -> None:
    one, other = (
        RemoteFolder(url=f"{scheme}://{name}@account.dfs.core.windows.net/shards/") for name in ("one", "other")
    )
    assert str(one) == f"{scheme}://one@account.dfs.core.windows.net/shards"
    assert redact_urls(str(one)) == str(one)
    assert one.cache("0" * 16) != other.cache("0" * 16)
    secret = RemoteFolder(url=f"{scheme}://user:planted@account.dfs.core.windows.net/shards?sig=planted")
    assert str(secret) == f"{scheme}://account.dfs.core.windows.net/shards"
    assert "planted" not in redact_urls(secret.url)

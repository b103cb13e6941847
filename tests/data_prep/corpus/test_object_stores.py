"""A corpus and shards in an object store: moto's S3 server on this machine, behind a proxy that counts and fails."""

import dataclasses
import gzip
import http.client
import json
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.remote import RetriesExhausted
from data_prep.contract.shards import open_shards
from data_prep.corpus import raw_files
from data_prep.corpus.documents import Partition
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.reading import read_partition
from data_prep.corpus.surveys import survey
from data_prep.reuse import upload
from data_prep.stages.build import build_shards, run_task
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.corpus.test_corpus import read, write_parquet
from tests.data_prep.fault_servers import fault_proxy

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
CONTENTS = {
    "text/a.jsonl": "".join(json.dumps({"text": f"text {i} é"}) + "\n" for i in range(2_000)).encode(),
    "text/sub/b.txt.gz": gzip.compress(b"one text"),
    "text/sub/c.parquet": write_parquet([f"row {i}" for i in range(2_000)], row_group_size=500),
    "text/README": b"no corpus",
}


def send(port, method, path, body=b""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {"Authorization": _AUTHORIZATION})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status in (200, 204)


@pytest.fixture(scope="module")
def moto_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; import sys; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                send(port, "PUT", "/corpus")
                break
            except ConnectionError:
                assert process.poll() is None
                time.sleep(0.1)
        for name, content in CONTENTS.items():
            send(port, "PUT", f"/corpus/{name}", content)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(moto_port, monkeypatch):
    """The proxy before the store, which s3:// leads to."""
    with fault_proxy(moto_port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, which wait for seconds
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def copy(tmp_path):
    """The same files in a folder."""
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_folders_globs_and_files_hold_what_a_local_copy_holds(store, copy):
    for place in ("text", "text/**/*.parquet", "text/sub/b.txt.gz", "text/?.jsonl"):
        assert read(f"s3://corpus/{place}") == read(copy / place)
    files = find_corpus_files(CorpusConfig(paths="s3://corpus/text"))
    assert [file.size for file in files] == [len(CONTENTS[f"text/{file.name}"]) for file in files]
    assert all(file.version for file in files)


def test_a_task_asks_for_its_bytes_and_for_nothing_else(store):
    config = CorpusConfig(paths="s3://corpus/text/*.jsonl")
    (file,) = pickle.loads(pickle.dumps(find_corpus_files(config)))
    assert len(store.asked) == 1
    s3fs.S3FileSystem.clear_instance_cache()  # as in a new process
    store.asked.clear()
    survey(file, config)
    assert [method for method, _, _ in store.asked] == ["GET"]
    store.asked.clear()
    partition = Partition(index=0, file=0, begin=0, end=file.size)
    assert len(list(read_partition(file, partition, config, CleaningConfig()))) == 2_000
    assert [method for method, _, _ in store.asked] == ["GET"]


@pytest.mark.parametrize(
    "fault", [503, "cut", *(pytest.param(fault, marks=pytest.mark.slow) for fault in (500, "drop"))]
)
def test_reading_goes_on_after_faults(store, copy, fault, monkeypatch):
    monkeypatch.setattr(raw_files, "SMALLEST_WINDOW", 30_000)
    monkeypatch.setattr(raw_files._Source, "largest_window", 30_000)
    expected = read(copy / "text")
    store.faults = [fault, None, fault, None, None, None, fault, fault]
    assert read("s3://corpus/text") == expected
    assert store.faults == []


@pytest.mark.parametrize("after", ["the listing", "its first bytes"])
def test_an_object_that_changed_is_refused(store, moto_port, after, monkeypatch):
    monkeypatch.setattr(raw_files, "SMALLEST_WINDOW", 30_000)
    monkeypatch.setattr(raw_files._Source, "largest_window", 30_000)
    send(moto_port, "PUT", "/corpus/new/a.txt", b"a" * 50_000)
    (file,) = find_corpus_files(CorpusConfig(paths="s3://corpus/new/a.txt"))
    with raw_files.open_raw(file) as raw:
        if after != "the listing":
            raw.read(1)
        send(moto_port, "PUT", "/corpus/new/a.txt", b"b" * 50_000)
        with pytest.raises(UserError, match=r"corpus file s3://corpus/new/a\.txt has changed"):
            raw.read(50_000)


def test_what_stays_is_one_line(store):
    store.faults = [503] * 400
    with pytest.raises(RetriesExhausted, match=r"cannot look up .*s3://corpus/text: the server answers 503"):
        read("s3://corpus/text")
    store.faults = []
    (file,) = find_corpus_files(CorpusConfig(paths="s3://corpus/text/a.jsonl"))
    store.faults = [503] * 400
    with pytest.raises(RetriesExhausted, match=r"s3://corpus/text/a\.jsonl: the server answers 503, at each of 4"):
        survey(file, CorpusConfig())
    store.faults = []
    for missing in ("s3://corpus/none.txt", "s3://corpus/none/*.txt", "s3://none/a.txt"):
        with pytest.raises(UserError, match="does not exist or matches no corpus file"):
            read(missing)


def test_a_second_start_reads_no_object_again(store, tiny_config, tmp_path):
    config = dataclasses.replace(
        tiny_config, output=str(tmp_path / "out"), corpus=CorpusConfig(paths="s3://corpus/text/*.jsonl")
    )
    run_task(config, "plan", None, no_progress)
    store.asked.clear()
    run_task(config, "plan", None, no_progress)
    assert all("list-type" in path for _, path, _ in store.asked)
    assert store.asked


@pytest.mark.slow
def test_workers_make_the_same_shards_of_it_as_of_a_folder(store, copy, tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, num_workers=2)
    summaries = [
        build_shards(
            dataclasses.replace(config, output=str(tmp_path / name), corpus=CorpusConfig(paths=path)), no_progress
        )
        for name, path in (("there", "s3://corpus/text"), ("here", str(copy / "text")))
    ]
    assert summaries[0].root_hash == summaries[1].root_hash


def test_shards_in_it_open_and_read(store, moto_port, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("NARROWBERT_CACHE", str(tmp_path / "cache"))
    for path in Path(tiny_shards).rglob("*"):
        if path.is_file():
            send(moto_port, "PUT", f"/corpus/shards/{path.relative_to(tiny_shards)}", path.read_bytes())
    store.faults = [503, None, "cut"]
    there, here = open_shards("s3://corpus/shards"), open_shards(tiny_shards)
    assert there.root_hash == here.root_hash
    chunk = there.split("train").chunk(0)
    assert all((chunk[name] == values).all() for name, values in here.split("train").chunk(0).items())
    (asked,) = [asked for _, path, asked in store.asked if path.endswith(".tar")]
    begin, length = here.indexes["train"].place(0)
    assert asked == f"bytes={begin}-{begin + length - 1}", "the bytes of the chunk and no others"


def puts(store):
    return [path.split("?")[0].removeprefix("/corpus/") for method, path, _ in store.asked if method == "PUT"]


def test_a_folder_is_copied_into_it_whole_or_without_a_manifest(
    store, tiny_config, tiny_shards, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("NARROWBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upload, "TRANSFERS", 1)
    command = ["upload", str(tiny_shards), "s3://corpus/uploaded"]
    store.put_faults = [None, 503, None, None, "drop", None, 403]  # the last one does not pass
    assert main(command) == 2
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"manifest\.json: it is not there"):
        open_shards("s3://corpus/uploaded")
    first = puts(store)
    assert first[0] == "uploaded/upload-of"
    store.asked.clear()
    assert main(command) == 0
    assert open_shards("s3://corpus/uploaded").root_hash == open_shards(tiny_shards).root_hash
    assert verify("s3://corpus/uploaded").problems == ()
    second = puts(store)
    assert second[-1] == "uploaded/manifest.json", "it comes last"
    assert len(set(first) & set(second)) == 1, "only what was refused is sent again"
    store.asked.clear()
    assert main(command) == 0
    assert puts(store) == ["uploaded/manifest.json"]

    other = dataclasses.replace(tiny_config, seed=1, output=str(tmp_path / "other"))
    build_shards(other, no_progress)
    assert main(["upload", other.output, "s3://corpus/uploaded"]) == 2
    assert "s3://corpus/uploaded holds other shards" in capsys.readouterr().err
    # Of the same sizes, most of them: what another upload left is not taken for this one's.
    send(int(store.port_behind), "DELETE", "/corpus/uploaded/manifest.json")
    assert main(["upload", other.output, "s3://corpus/uploaded"]) == 0
    assert verify("s3://corpus/uploaded").problems == ()


def test_an_output_in_a_store_is_refused_with_the_way_there(tmp_path, capsys):
    assert main(["shards", "--output", "s3://user:secret@corpus/new"]) == 2
    line = capsys.readouterr().err
    assert "narrowbert-prep upload" in line
    assert "secret" not in line
    assert main(["upload", str(tmp_path), "https://host/folder"]) == 2
    assert "s3://bucket/folder" in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named_by_its_extra():
    code = """
import sys
sys.modules |= dict.fromkeys(("s3fs", "gcsfs", "adlfs"))
from data_prep.config import CorpusConfig
from data_prep.corpus.files import find_corpus_files
for scheme in ("s3", "gs", "abfs"):
    try:
        find_corpus_files(CorpusConfig(paths=f"{scheme}://bucket/a.txt"))
    except Exception as error:
        print(type(error).__name__, error)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [
        f"UserError reading {scheme}:// needs another package: pip install 'narrowbert[{extra}]'"
        for scheme, extra in (("s3", "s3"), ("gs", "gcs"), ("abfs", "azure"))
    ]

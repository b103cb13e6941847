"""Reading of corpus files through faults, from real files and a real server."""

import errno
import gzip
import json
import logging
import os
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.remote import RetriesExhausted
from data_prep.corpus import raw_files
from data_prep.corpus.documents import CorpusFile, Partition
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.raw_files import open_raw
from data_prep.corpus.reading import read_partition
from data_prep.corpus.surveys import survey
from data_prep.stages.build import build_shards, run_task
from tests.data_prep.conftest import no_progress
from tests.data_prep.corpus.test_corpus import read, write_parquet
from tests.data_prep.fault_servers import fault_server

CONTENT = random.Random(3).randbytes(200_000)
SMALL, LARGE = 10_000, 40_000
FAULTS = [503, 500, 429, 408, "cut", "drop"]


@pytest.fixture(scope="module", autouse=True)
def small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_files, "SMALLEST_WINDOW", SMALL)
        patch.setattr(raw_files, "LARGEST_WINDOW", LARGE)
        patch.setattr(raw_files._Source, "largest_window", LARGE)
        patch.setattr(raw_files._Local, "largest_window", SMALL)
        yield


@pytest.fixture(scope="module")
def module_server():
    with fault_server() as running:
        yield running


@pytest.fixture
def server(module_server):
    module_server.__dict__.update(contents={"/a.bin": CONTENT}, ranges=True, faults=[], before_answer={}, asked=[])
    return module_server


def file_at(path):
    return CorpusFile(name="a", path=str(path), weight=1.0, kind="txt", compression=None)


def lines(count=4_000):
    return "".join(json.dumps({"text": f"text {i} é"}) + "\n" for i in range(count)).encode()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_reading_goes_on_where_a_fault_hit(server, ranges, fault):
    server.ranges = ranges
    server.faults = [fault, None, fault, fault, fault, None, fault]
    with open_raw(file_at(f"{server.url}/a.bin")) as raw:
        assert raw.read() == CONTENT
        assert raw.seekable() is ranges
    assert server.faults == [] or not ranges


def test_windows_grow_and_no_request_asks_for_the_size(server):
    with open_raw(file_at(f"{server.url}/a.bin")) as raw:
        assert raw.read() == CONTENT
    begins = [int(asked.removeprefix("bytes=").split("-")[0]) for _, asked in server.asked]
    assert begins == [0, SMALL, SMALL + LARGE, SMALL + 2 * LARGE, SMALL + 3 * LARGE, SMALL + 4 * LARGE]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_seeks_and_reads_between_any_faults_give_the_files_bytes(module_server, data):
    server = module_server
    server.__dict__.update(contents={"/a.bin": CONTENT}, ranges=True, before_answer={}, asked=[])
    faults = st.lists(st.sampled_from([None, None, *FAULTS]), max_size=12)
    server.faults = [fault for some in data.draw(faults) for fault in (some, None)]
    with open_raw(file_at(f"{server.url}/a.bin")) as raw:
        for _ in range(data.draw(st.integers(1, 5))):
            begin = data.draw(st.integers(0, len(CONTENT) + 10))
            size = data.draw(st.integers(0, 60_000))
            raw.seek(begin)
            assert raw.read(size) == CONTENT[begin : begin + size]
        assert raw.seek(-5, os.SEEK_END) == len(CONTENT) - 5
        assert raw.read() == CONTENT[-5:]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("begins_alike", [True, False])
def test_a_file_that_changes_is_refused_and_not_mixed(server, ranges, begins_alike):
    other = CONTENT[:30_000] + bytes(len(CONTENT) - 30_000) if begins_alike else CONTENT + b"more"
    server.ranges, server.faults = ranges, [None, "cut", None] if ranges else ["cut"]
    server.before_answer = {2 if ranges else 1: {"/a.bin": other}}
    with open_raw(file_at(f"{server.url}/a.bin")) as raw, pytest.raises(UserError, match=r"a\.bin has changed"):
        raw.read()


def test_a_file_that_shrank_below_what_was_read_is_refused(server):
    server.before_answer = {2: {"/a.bin": CONTENT[:100]}}
    with open_raw(file_at(f"{server.url}/a.bin")) as raw, pytest.raises(UserError, match=r"a\.bin has changed"):
        raw.read()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_in_one_line_of_its_own_kind(server, fault, caplog):
    server.faults = [None] + [fault] * (8 if fault == "drop" else 4)  # aiohttp asks twice where nothing comes
    url = server.url.replace("127.0.0.1", "user:secret@127.0.0.1") + "/a.bin?X-Amz-Signature=secret&b=1"
    with (
        caplog.at_level(logging.WARNING),
        open_raw(file_at(url)) as raw,
        pytest.raises(
            RetriesExhausted, match=r"cannot read the corpus file http://\*\*\*@.*/a\.bin.*: .*each of 4 attempts"
        ),
    ):
        raw.read()
    assert server.faults == [] or fault == "drop"
    assert len(caplog.records) == 3
    assert "secret" not in caplog.text
    assert "/a.bin?" in caplog.text
    assert all(path == "/a.bin?X-Amz-Signature=secret&b=1" for path, _ in server.asked)


@pytest.mark.parametrize(("status", "said"), [(404, "it is not there"), (403, "the server answers 403"), (401, "401")])
def test_a_fault_that_will_not_pass_is_not_tried_again(server, status, said):
    server.faults = [status]
    with open_raw(file_at(f"{server.url}/a.bin")) as raw, pytest.raises(UserError, match=said) as refused:
        raw.read()
    assert not isinstance(refused.value, RetriesExhausted)
    assert len(server.asked) == 1


def test_an_empty_file_is_empty(server):
    server.contents["/a.bin"] = b""
    with open_raw(file_at(f"{server.url}/a.bin")) as raw:
        assert raw.read() == b""


@settings(max_examples=30, deadline=None)
@given(faults=st.lists(st.sampled_from([0, 0, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN]), max_size=30))
def test_a_shared_disk_may_fail_at_any_block(tmp_path_factory, faults):
    path = tmp_path_factory.mktemp("disk") / "a.txt"
    path.write_bytes(CONTENT)
    left = [fault for some in faults for fault in (some, 0)]
    descriptors = len(list(Path("/proc/self/fd").iterdir()))

    def failing(descriptor, size, begin, original=os.pread):
        if left and (number := left.pop(0)):
            raise OSError(number, os.strerror(number))
        return original(descriptor, size, begin)

    with pytest.MonkeyPatch.context() as patch, open_raw(file_at(path)) as raw:
        patch.setattr(os, "pread", failing)
        assert raw.read() == CONTENT
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors  # of others some may be closed meanwhile


def test_a_local_file_that_was_replaced_after_a_fault_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(CONTENT)

    def failing(descriptor, size, begin, original=os.pread):
        if begin and path.stat().st_size == len(CONTENT):
            path.write_bytes(CONTENT[::-1] + b"more")
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(descriptor, size, begin)

    monkeypatch.setattr(os, "pread", failing)
    with open_raw(file_at(path)) as raw, pytest.raises(UserError, match=r"a\.txt has changed"):
        raw.read()


def test_a_local_file_that_is_truncated_under_the_reader_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(CONTENT)
    with open_raw(file_at(path)) as raw:
        raw.read(SMALL)
        os.truncate(path, 2 * SMALL)
        with pytest.raises(UserError, match=r"a\.txt has changed"):
            raw.read()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file whose reading gives EIO")
def test_a_disk_error_that_stays_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to("/proc/self/mem")
    with pytest.raises(
        RetriesExhausted, match=r"cannot read the corpus file .*a\.txt: Input/output error, at each of 4"
    ):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("ranges", [True, False])
def test_every_format_is_read_through_faults(server, tmp_path, ranges):
    contents = {
        "a.jsonl": lines(),
        "b.jsonl.gz": gzip.compress(lines()),
        "c.parquet": write_parquet([f"row {i}" for i in range(9_000)], row_group_size=1_000),
        "d.parquet.gz": gzip.compress(write_parquet([f"row {i}" for i in range(900)])),
    }
    server.ranges = ranges
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        server.contents[f"/{name}"] = content
        server.faults = [None, "cut", 503, None, "drop", None, "cut"] * 3
        assert read(f"{server.url}/{name}") == read(tmp_path / name)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_partition_in_the_middle_fetches_little_more_than_itself(server, ranges, tmp_path):
    content = lines(100_000)
    server.contents["/a.jsonl"] = content
    (tmp_path / "a.jsonl").write_bytes(content)
    server.ranges = ranges
    begin = 1_000_000
    partition = Partition(index=0, file=0, begin=begin, end=begin + 20_000, lines_before=content.count(b"\n", 0, begin))
    files = [find_corpus_files(CorpusConfig(paths=path))[0] for path in (f"{server.url}/a.jsonl", str(tmp_path))]
    found = [list(read_partition(file, partition, CorpusConfig(), CleaningConfig())) for file in files]
    assert found[0] == found[1]
    if ranges:
        asked = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for _, span in server.asked]
        assert max(end for _, end in asked) < len(content)


def test_a_survey_survives_faults_and_a_url_is_asked_for_nothing_before(server):
    server.contents["/a.jsonl"] = lines()
    (file,) = find_corpus_files(CorpusConfig(paths=f"{server.url}/a.jsonl"))
    assert server.asked == []
    sound = survey(file, CorpusConfig())
    server.faults = [503, None, "cut", "drop", None, "cut"]
    assert survey(file, CorpusConfig()) == sound


def test_lookups_are_tried_again_and_a_gone_server_is_not_called_a_missing_file(server):
    index = b'<a href="a.jsonl">a</a><a href="sub/">sub</a>'
    server.contents |= {"/x/": index, "/x/sub/": b'<a href="b.jsonl?sig=secret">b</a>', "/x/a.jsonl": lines(3)}
    for path in ("/x/", "/x/**/*.jsonl"):
        server.faults = [503, "drop", None, 500]
        names = [file.name for file in find_corpus_files(CorpusConfig(paths=server.url + path))]
        assert names == ["a.jsonl", "sub/b.jsonl"]
    server.faults = [None, 503, 503, 503, 503]
    with pytest.raises(RetriesExhausted, match=r"cannot look up the corpus path .*/x/: the server answers 503"):
        find_corpus_files(CorpusConfig(paths=f"{server.url}/x/"))
    with pytest.raises(UserError, match="does not exist or matches no corpus file"):
        find_corpus_files(CorpusConfig(paths=f"{server.url}/none/*.txt"))
    with fault_server() as gone:
        url = gone.url.replace("127.0.0.1", "user:secret@127.0.0.1")
    for path in ("/x/", "/x/*.txt", "/x/a.txt?sig=secret"):
        with pytest.raises(RetriesExhausted, match=r"the host cannot be reached") as refused:
            read(url + path)
        assert "secret" not in str(refused.value)


def test_no_message_shows_the_secrets_of_a_url(server):
    secret = server.url.replace("127.0.0.1", "user:secret@127.0.0.1")
    server.contents["/b.bin"] = b"?"
    for path in ("/none.txt?sig=secret", "/none/?sig=secret", "/b.bin?sig=secret", "/none/*.txt?sig=secret"):
        with pytest.raises(UserError) as refused:
            read(secret + path)
        assert "secret" not in str(refused.value)
        assert str(server.server_port) in str(refused.value)
    server.contents["/a.txt"] = b"text"
    url = f"{secret}/a.txt?sig=secret"
    with pytest.raises(UserError, match="named twice") as refused:
        read(url, url, weights=(1.0, 2.0))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_are_the_same_bytes_whatever_failed_on_the_way(server, corpus_folder, tiny_config, tmp_path, ranges):
    server.ranges = ranges
    names = sorted(path.name for path in Path(corpus_folder).iterdir())
    server.contents = {f"/{name}": (Path(corpus_folder) / name).read_bytes() for name in names}
    draw = random.Random(1)
    server.faults = [fault for _ in range(20) for fault in (draw.choice(FAULTS), draw.choice(FAULTS), None, None)]
    hashes = set()
    for place in (server.url, corpus_folder):
        corpus = CorpusConfig(paths=tuple(f"{place}/{name}" for name in names))
        output = tmp_path / str(len(hashes))
        hashes.add(build_shards(replace(tiny_config, output=str(output), corpus=corpus), no_progress).root_hash)
    assert len(hashes) == 1
    assert len(server.faults) < 70


@pytest.mark.parametrize("call", ["stat", "scandir"])
def test_a_lookup_on_a_failing_disk_leaves_no_file_out(tmp_path, monkeypatch, call):
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).write_text("text")
    failures = {"b.txt" if call == "stat" else "sub": 2}
    original = getattr(os, call)

    def failing(path, *arguments, **options):
        name = Path(os.fsdecode(path)).name if isinstance(path, str | bytes | os.PathLike) else ""
        if failures.get(name):
            failures[name] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    files = find_corpus_files(CorpusConfig(paths=str(tmp_path)))
    assert [file.name for file in files] == ["a.txt", "b.txt", "sub/c.txt"]
    failures |= dict.fromkeys(failures, 4)
    with pytest.raises(RetriesExhausted, match="Stale file handle"):
        find_corpus_files(CorpusConfig(paths=str(tmp_path)))


def test_files_inside_archives_and_in_memory_are_read(tmp_path):
    content = lines(8_000)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/a.jsonl", content)
        archive.writestr("in/b.parquet", write_parquet([f"row {i}" for i in range(900)]))
    archive_url = f"zip://in/*::file://{tmp_path}/z.zip"
    with fsspec.open("memory://raw/a.jsonl", "wb") as file:
        file.write(content)
    (tmp_path / "a.jsonl").write_bytes(content)
    expected = read(tmp_path / "a.jsonl")
    assert read("memory://raw") == expected
    assert read(archive_url)[: len(expected)] == expected
    assert len(read(archive_url)) == len(expected) + 900
    (file,) = find_corpus_files(CorpusConfig(paths="memory://raw/a.jsonl"))
    with open_raw(file) as raw:
        raw.seek(100_000)
        assert raw.read(10) == content[100_000:100_010]
        assert raw.seek(0) == 0
        assert raw.read() == content


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_file_that_changes_between_plan_and_map_is_refused(server, corpus_folder, tiny_config, tmp_path, ranges):
    server.ranges = ranges
    content = (Path(corpus_folder) / "many.jsonl").read_bytes()
    server.contents["/a.jsonl"] = content
    corpus = CorpusConfig(paths=f"{server.url}/a.jsonl")
    config = replace(tiny_config, output=str(tmp_path / "out"), corpus=corpus)
    run_task(config, "plan", None, no_progress)
    server.contents["/a.jsonl"] = content.replace(b"house", b"mouse")
    with pytest.raises(UserError, match=r"corpus file http://.*/a\.jsonl has changed"):
        run_task(config, "map", None, no_progress)
    server.contents["/a.jsonl"] = content
    run_task(config, "map", None, no_progress)

"""Arrays of JSON, and values one behind the other: each record is a document or a reject, however the file is cut."""

import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus import streams
from data_prep.corpus.documents import Document, Reject
from data_prep.corpus.formats import json_format, line_formats
from tests.data_prep.corpus.test_corpus import CHILD, COMPRESS, check_cuts, read

FILES = [
    # content, texts, rejects by the place of the record
    (b'[{"text": "one"}, {"text": "two"}]', ["one", "two"], {}),
    (b'\xef\xbb\xbf [\n  {"text": "one",\n   "n": [1, {"a": "]"}]},\n  {"text": "two"}\n]\n', ["one", "two"], {}),
    (b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"], {}),
    (b'{\n "text": "one"\n}\n', ["one"], {}),
    (b'{\n "text": "one"\n}\n{\n "text": "two"\n}\n', ["one", "two"], {}),
    ('[{"text": "日本"}]'.encode("utf-16"), ["日本"], {}),
    (b'[{"text": "\\ud83d\\ude00 \\u00e9"}]', ["😀 é"], {}),
    (b'[{"text": "caf\xe9 \x93quoted\x94"}, {"text": "fine"}]', ["café “quoted”", "fine"], {}),
    (b'[{"text": "\xc3\xa9 b\xffad"}, {"text": "fine"}]', ["fine"], {1: "undecodable"}),
    (b'[{"text": "a"}, {"text": bad, "b": ["}", 1]}, {"text": "c"}]', ["a", "c"], {2: "not_json"}),
    (b'[{"text": "a"}, {"text": "never closed}\n, {"text": "c"}]', ["a"], {2: "not_json", 3: "not_json"}),
    (b'{"text": "a"}\n{"text": \nwords\n{"text": "b"}\n', ["a", "b"], {2: "not_json", 3: "not_json"}),
    (b'[1, "x", null, [2]]', [], dict.fromkeys((1, 2, 3, 4), "not_an_object")),
    (b'[{}, {"text": 3}]', [], dict.fromkeys((1, 2), "no_text_field")),
    (b'[{"text": "a"}, {"text": "b', ["a"], {2: "not_json"}),
    (b'[{"text": "a"}, {"text": "b"}', ["a", "b"], {3: "not_json"}),
    (b'[{"text": "a"}] {"text": "b"}', ["a"], {2: "not_json"}),
    (b'{"data": [{"text": "a"}]}', [], {1: "no_text_field"}),
    (b"[" * 100_000 + b"]" * 100_000, [], {1: "not_json"}),
    (b"[]", [], {0: "empty"}),
    (b"", [], {0: "empty"}),
    (b" \n", [], {0: "empty"}),
]  # fmt: skip


@pytest.mark.parametrize(("content", "texts", "rejects"), FILES)
def test_one_file(tmp_path, content, texts, rejects):
    (tmp_path / "a.json").write_bytes(content)
    items = read(tmp_path / "a.json")
    assert [item.text for item in items if isinstance(item, Document)] == texts
    found = {item.id: item.reason for item in items if isinstance(item, Reject)}
    assert found == {f"a.json:{place}" if place else "a.json": reason for place, reason in rejects.items()}


def test_a_reject_tells_where_the_record_is_wrong(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"text": "a"}, {"text": bad}]')
    (reject,) = (item for item in read(tmp_path / "*.json") if isinstance(item, Reject))
    assert (reject.detail, reject.sample) == ("Expecting value, 9 characters behind its beginning", '{"text": bad}]')


def test_a_record_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(line_formats, "LINE_BYTES", 1_000)
    monkeypatch.setattr(json_format, "BLOCK_BYTES", 100)
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "],[" * 2_000}, {"text": "c"}]))
    items = read(tmp_path / "*.json")
    assert [item.text for item in items if isinstance(item, Document)] == ["a", "c"]
    assert [(item.id, item.reason) for item in items if isinstance(item, Reject)] == [("a.json:2", "record_too_long")]


@pytest.mark.parametrize("cut", [3, 9, 40])
def test_what_stands_before_the_end_of_a_truncated_file_is_kept(tmp_path, cut):
    records = [{"text": f"text {i} {i**i}"} for i in range(200)]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(records).encode())[:-cut])
    *kept, reject = read(tmp_path / "*.gz")
    assert [item.text for item in kept] == [record["text"] for record in records[: len(kept)]]
    assert len(kept) > 150
    assert reject.reason == "damaged_file"


VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\é日,[]{} \n')),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)

RECORDS = st.fixed_dictionaries({"text": st.text(st.sampled_from('ab"\\é日,[]{}')), "more": VALUES})


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries({"text": st.text(st.sampled_from('ab"\\é日,[]{}')), "more": VALUES}), max_size=6
    ),
    layout=st.sampled_from([(b"[", b",", b"]"), (b"[\n", b",\n", b"\n]\n"), (b"", b"\n", b"\n"), (b"", b" ", b"")]),
    options=st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}]),
    suffix=st.sampled_from([*COMPRESS, "cut"]),
    block=st.sampled_from([1, 3, 7, 1 << 20]),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_any_partitions_hold_every_record_once(tmp_path_factory, records, layout, options, suffix, block, cuts):
    begin, between, end = layout
    content = begin + between.join(json.dumps(record, **options).encode() for record in records) + end
    path = tmp_path_factory.mktemp("any") / f"a.json{'.gz' if suffix == 'cut' else suffix}"
    path.write_bytes(gzip.compress(content)[:-4] if suffix == "cut" else COMPRESS[suffix](content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_format, "BLOCK_BYTES", block)
        patch.setattr(streams, "HEAD_BYTES", 16)
        whole = check_cuts(path, CorpusConfig(), CleaningConfig(), cuts, list(range(len(cuts) + 1))[::-1])
    if suffix != "cut":
        texts = {f"a.json{suffix}:{i}": record["text"] for i, record in enumerate(records, start=1)}
        assert {item.id: item.text for item in whole if isinstance(item, Document)} == {
            place: text for place, text in texts.items() if text
        }
        assert len(whole) == max(len(records), 1)
    else:
        assert [item.reason for item in whole if isinstance(item, Reject)].count("damaged_file") == 1


@pytest.mark.long
def test_memory_stays_small_whatever_the_array(tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.write(b"[")
        for _ in range(240):
            stream.write((b'{"text": "' + b"words " * 200 + b'"},\n') * 800)
        stream.write(b'{"text": "' + b"x" * 90_000_000 + b'"}]')
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "a.json", "file"], capture_output=True, text=True, check=True
    )
    count, _, peak_kb = map(int, ended.stdout.split())
    assert count == 240 * 800 + 1
    assert peak_kb < 350_000

import json
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.shards import open_shards
from data_prep.report import page as page_module
from data_prep.report.page import write_report
from data_prep.report.statistics import document_statistics, mask_statistics, merge
from tests.data_prep.shard_folders import GEOMETRY, SPECIAL, make_folder

NASTY = "<script>alert('x')</script> & \"quoted\" \x00\x07\x1b[31m \u202eback\u2066 \ud800 </div></style>"


documents = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 5000), st.integers(0, 2**40)), max_size=30)


def statistics_of(rows, unknown=0):
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return document_statistics(characters=columns[0], words=columns[1], tokens=columns[2], unknown=unknown)


@settings(deadline=None)
@given(documents)
def test_document_statistics_are_those_of_a_loop(rows):
    found = statistics_of(rows, unknown=7)
    lengths = Counter(str(1 << (tokens.bit_length() - 1)) for _, _, tokens in rows if tokens)
    tenths = Counter(min(10 * tokens // words, 50) for _, words, tokens in rows if words)
    assert found == {
        "documents": len(rows),
        "characters": sum(row[0] for row in rows),
        "words": sum(row[1] for row in rows),
        "tokens": sum(row[2] for row in rows),
        "unknown_tokens": 7,
        "document_length": lengths,
        "fertility": {f"{tenth // 10}.{tenth % 10}": count for tenth, count in tenths.items()},
    }
    assert json.loads(json.dumps(found)) == found


@settings(deadline=None)
@given(documents, documents)
def test_merged_parts_are_the_whole(left, right):
    assert merge([statistics_of(left, 1), statistics_of(right, 2)]) == statistics_of(left + right, 3)


def test_merge_adds_what_only_some_have():
    assert merge([]) == {}
    parts = [{"a": 1, "b": {"x": {"y": 2}}}, {"b": {"x": {"z": 1}, "w": 0.5}}, {"b": {"x": {"y": 3}}}]
    assert merge(iter(parts)) == {"a": 1, "b": {"x": {"y": 5, "z": 1}, "w": 0.5}}
    assert parts[0] == {"a": 1, "b": {"x": {"y": 2}}}, "left as it was"


@pytest.mark.parametrize("mode", ["concat", "isolated", "document"])
def test_mask_statistics_are_those_of_a_loop(tmp_path, mode):
    arrays = open_shards(make_folder(tmp_path / "made", mode)).split("train").chunk(0)
    expected, lengths = Counter(), Counter()
    for row, ids in enumerate(arrays["input_ids"].tolist()):
        length = int(arrays["lengths"][row])
        lengths[str((length - 1) // 2 * 2 + 1)] += 1  # 16 bins of 2 for 32 tokens
        expected.update(rows=1, real_tokens=length, padding_tokens=ids.count(SPECIAL["pad"]), short_rows=length < 32)
        for variant in range(GEOMETRY.num_variants):
            expected["slots"] += GEOMETRY.masked_per_row
            masked = arrays["masked_positions"][row, variant, : int(arrays["num_masked"][row, variant])].tolist()
            expected["masked_runs"] += sum(position - 1 not in masked for position in masked)
            for slot in range(int(arrays["num_masked"][row, variant])):
                original = ids[arrays["masked_positions"][row, variant, slot]]
                now = int(arrays["replacement_ids"][row, variant, slot])
                kind = "became_mask" if now == SPECIAL["mask"] else "kept" if now == original else "random"
                expected.update(masked=1, **{kind: 1})
    found = mask_statistics(arrays, SPECIAL["mask"])
    assert found == {**expected, "row_length": lengths}
    assert min(found[kind] for kind in ("became_mask", "random", "kept")) > 0
    assert json.loads(json.dumps(found)) == found


class Page(HTMLParser):
    """The page as a browser sees it: text, tags, and whether they close as they open."""

    def __init__(self, content):
        super().__init__()
        self.text, self.tags, self.stack, self.marks = [], Counter(), [], []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        assert not any(name.startswith("on") for name, _ in attrs)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag == "mark":
            self.marks.append([dict(attrs)["class"], ""])
        if tag not in ("meta", "rect"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, _attrs):
        raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag):
        if tag == "rect":
            return
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "mark" in self.stack:
            self.marks[-1][1] += data


@pytest.fixture
def manifest(tmp_path):
    """Of a made-up folder, with the statistics that the commands write."""
    opened = open_shards(make_folder(tmp_path / "made"))
    splits = {name: {**entry, "documents": 30, "tokens": 4_321} for name, entry in opened.manifest["splits"].items()}
    chunks = [opened.split(name).chunk(index) for name in splits for index in range(3)]
    return {
        **opened.manifest,
        "splits": splits,
        "inputs": [
            {"name": f"{NASTY}-{number}.txt", "bytes": 1_000 + number, "size": 500, "sha256": "ab" * 32}
            for number in range(12)
        ],
        "configuration": {"mask": {"mask_fraction": 0.8, "random_fraction": 0.15}, "note": NASTY},
        "libraries": {"numpy": "2.4.6"},
        "statistics": {
            "read": 71,
            "not_sampled": 0,
            "rejects": {"duplicate": 9, NASTY: 2},
            "dropped_tokens": 12_345,
            "documents": statistics_of([(1000, 100, 131), (90_000, 9000, 12_000), (10, 1, 77)], unknown=61),
            "rows": merge(mask_statistics(arrays, SPECIAL["mask"]) for arrays in chunks),
        },
    }


REJECTS = [
    {"id": f"{NASTY}:1", "reason": NASTY, "detail": NASTY, "sample": NASTY},
    {"id": "b.txt", "reason": "duplicate", "detail": "of a.txt", "sample": "x" * 5000},
]
WORDS = "[CLS] <b>bold</b> {<u>->[MASK]} | {a-><i>}s {<p>=} {{->[MASK]} {=->=} {==}"
ROWS = [f"row 0:1, 9 tokens, 5 masked\n{WORDS} {NASTY}\n"]


def page_of(folder, manifest, rejects, rows):
    folder.mkdir(exist_ok=True)
    write_report(folder, manifest, open_shards(folder.parent / "made").indexes, rejects, rows)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_what_the_manifest_says(manifest, tmp_path):
    page = Page(page_of(tmp_path / "page", manifest, REJECTS, ROWS))
    text = "".join(page.text)
    rows = manifest["statistics"]["rows"]
    for expected in (
        manifest["root_hash"],
        "12,345 tokens of documents' ends were dropped",
        "of 71 documents read",
        f"{rows['masked']:,} of {rows['slots']:,} slots",
        f"{rows['became_mask'] / rows['masked']:.2%}",
        f"{rows['padding_tokens'] / (rows['padding_tokens'] + rows['real_tokens']):.2%}",
        f"{61 / 12_208:.2%}",  # [UNK]
        "15.00%",  # random tokens asked for
        "5.00%",  # so many kept
        "and 2 more",
        "12,208 tokens: 1.341 tokens a word",
        '"numpy": "2.4.6"',
    ):
        assert expected in text
    for index in open_shards(tmp_path / "made").indexes.values():
        files = [index.file(shard) for shard in range(index.num_shards)]
        assert all(file["sha256"] in text and file["name"] in text for file in files)
    assert page.tags["svg"] == 3
    # From 64 to 8,192 tokens: 8 bars. From 1.3 to 5.0: 38. Rows: 16.
    assert page.tags["rect"] == 8 + 38 + 16


def test_of_many_shards_the_page_shows_the_first(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "SHOWN_SHARDS", 1)
    text = "".join(Page(page_of(tmp_path / "page", manifest, [], [])).text)
    index = open_shards(tmp_path / "made").indexes["train"]
    assert index.num_shards > 2
    assert "train-00000.tar" in text
    assert "train-00001.tar" not in text
    rest = (index.shard_rows[1:].sum(), index.num_chunks - len(index.chunks(0)), index.shard_sizes[1:].sum())
    assert f"and {index.num_shards - 1} more of train" + "".join(f"{number:,}" for number in rest) in text
    assert "more of validation" not in text


def test_rows_have_their_masks_coloured(manifest, tmp_path):
    page = Page(page_of(tmp_path / "page", manifest, [], ROWS))
    example = [["mask", "house [MASK]"], ["random", "house tree"], ["kept", "house"]]
    assert page.marks[3:6] == example
    shown = ["<u> [MASK]", "a <i>", "<p>", "{ [MASK]", "= =", "="]
    kinds = ["mask", "random", "kept", "mask", "random", "kept"]
    assert page.marks[6:] == [list(pair) for pair in zip(kinds, shown, strict=True)]


def test_nasty_text_is_shown_and_does_nothing(manifest, tmp_path):
    content = page_of(tmp_path / "page", manifest, REJECTS, ROWS)
    page = Page(content)
    assert page.stack == []
    assert not {"script", "u", "i"} & set(page.tags)
    assert page.tags["b"] == 6, "those of the tiles alone"
    assert "default-src 'none'" in content
    text = "".join(page.text)
    assert text.count("<script>alert('x')</script>") >= 10 + 4
    assert "<U+202E>back<U+2066>" in text
    assert not set(content) & set(map(chr, [*range(9), *range(11, 32), 0x202E, 0x2066, 0xD800]))
    assert "x" * 300 in text
    assert "x" * 301 not in text


def test_equal_input_gives_equal_bytes(manifest, tmp_path):
    first = page_of(tmp_path / "first", manifest, REJECTS, ROWS)
    shuffled = json.loads(json.dumps(manifest, sort_keys=True))
    assert list(shuffled["statistics"]["rejects"]) != list(manifest["statistics"]["rejects"])
    assert page_of(tmp_path / "second", shuffled, REJECTS, ROWS) == first


def test_a_folder_with_little_in_it(manifest, tmp_path):
    manifest["statistics"] |= {"rejects": {}, "documents": statistics_of([(5, 0, 3)]), "dropped_tokens": 0}
    del manifest["configuration"], manifest["inputs"]
    text = "".join(Page(page_of(tmp_path / "page", manifest, [], [])).text)
    assert "rejects.jsonl.gz" not in text
    assert "dropped" not in text
    assert "What went in" not in text

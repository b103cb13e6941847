"""Files that a corpus should not hold but does: each ends in rejects with reasons or in one line, and costs no other
file anything."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import zstandard

from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus.documents import Document, Reject
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.partitions import plan_partitions
from data_prep.corpus.reading import read_partition
from data_prep.corpus.surveys import survey
from tests.data_prep.corpus.test_corpus import write_parquet

ZSTD = zstandard.ZstdCompressor().compress
LINES = "".join(json.dumps({"text": f"text {i} {i**i}"}) + "\n" for i in range(200)).encode()
PARQUET = write_parquet([f"text {i} {i**i}" for i in range(200)], row_group_size=50)
FRENCH = "Le café était fermé, mais l’élève naïf a préféré rester près de la forêt."
RUSSIAN = "Привет, мир! Это обычный русский текст, в котором нет ничего особенного."
JAPANESE = "これは日本語の文章です。今日はとても天気がいいので、散歩に行きましょう。"
POLISH = "Zażółć gęślą jaźń, a potem idź do domu i śpij spokojnie aż do rana, źle się czujesz."

NASTY: dict[str, tuple[bytes, list[str], dict[str, str]]] = {
    # name: (content, texts of its documents, rejects)
    "empty.txt": (b"", [], {"": "empty"}),
    "empty.jsonl": (b"", [], {"": "empty"}),
    "empty.csv": (b"", [], {"": "empty"}),
    "header.csv": (b"id,text\n", [], {"": "empty"}),
    "empty.txt.gz": (b"", [], {"": "empty"}),
    "empty.jsonl.zst": (ZSTD(b""), [], {"": "empty"}),
    "empty.parquet": (b"", [], {"": "damaged_file"}),
    "rowless.parquet": (write_parquet([]), [], {"": "empty"}),
    "blank.txt": (b" \t\r\n\n  \xc2\xa0\xe2\x80\x8b\n", [], {"": "empty"}),
    "blank.jsonl": (b"\n  \n\r\n", [], {"": "empty"}),
    "blanks.jsonl": (b'{"text": " "}\n{"text": "fine"}\n{"text": ""}\n', ["fine"], {":1": "empty", ":3": "empty"}),
    "zeros.txt": (bytes(5000), [], {"": "empty"}),
    "zeros.jsonl": (bytes(5000), [], {":1": "not_json"}),
    "nul.txt": (b"one\0two", ["one two"], {}),
    "nul.jsonl": (b'{"text": "one\\u0000two"}\n{"text": "a\0b"}\n', ["one two"], {":2": "not_json"}),
    "random.txt": (os.urandom(0) + bytes((i * i * 7 + i // 3) % 256 for i in range(3000)), [], {"": "undecodable"}),
    "picture.txt": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, [], {"": "undecodable"}),
    "damaged.txt": ("été ".encode() * 9 + b"\xff\xfe " + "été".encode(), [], {"": "undecodable"}),
    "damaged_russian.txt": (RUSSIAN.encode()[:-5] + RUSSIAN.encode()[-4:], [], {"": "undecodable"}),
    "damaged_japanese.txt": (JAPANESE.encode()[:31] + JAPANESE.encode()[32:], [], {"": "undecodable"}),
    "damaged_among_cp1251.jsonl": (
        b"".join(b'{"text": "%s"}\n' % RUSSIAN.encode("cp1251") for _ in range(3))
        + b'{"text": "%s"}\n' % (RUSSIAN.encode()[:-5] + RUSSIAN.encode()[-4:]),
        [RUSSIAN] * 3,
        {":4": "undecodable"},
    ),
    "one_bad_byte.txt": (b"fine\nb\xffad\n", [], {"": "undecodable"}),
    "half_a_character.txt": (b"the caf\xc3", [], {"": "undecodable"}),
    "damaged.jsonl": (
        b'{"text": "fine \xc3\xa9"}\n{"text": "\xc3\xa9 b\xffad"}\n{"text": "fine"}\n',
        ["fine é", "fine"],
        {":2": "undecodable"},
    ),
    "bom.jsonl": (b"\xef\xbb\xbf" + b'{"text": "fine"}\r\n', ["fine"], {}),
    "latin1.txt": (FRENCH.replace("’", "'").encode("latin-1"), [FRENCH.replace("’", "'")], {}),
    "cp1252.jsonl": (b'{"text": "caf\xe9 \x93quoted\x94"}\n{"text": "fine"}\n', ["café “quoted”", "fine"], {}),
    "cp1250.txt": (POLISH.encode("cp1250"), [POLISH], {}),
    "cp1251.txt": (RUSSIAN.encode("cp1251"), [RUSSIAN], {}),
    "koi8_r.txt": (RUSSIAN.encode("koi8-r"), [RUSSIAN], {}),
    "shift_jis.txt": (JAPANESE.encode("shift-jis"), [JAPANESE], {}),
    "cp1251.csv": (f"id,text\n1,{RUSSIAN.replace(',', '')}\n".encode("cp1251"), [RUSSIAN.replace(",", "")], {}),
    "utf16.txt": ("Žluťoučký kůň\r\n".encode("utf-16"), ["Žluťoučký kůň"], {}),
    "utf16_unmarked.txt": ("plain English text".encode("utf-16-le"), ["plain English text"], {}),
    "utf16_be_unmarked.txt": (RUSSIAN.encode("utf-16-be"), [RUSSIAN], {}),
    "utf16.jsonl": ('{"text": "日本"}\n{"text": "b"}\n'.encode("utf-16"), ["日本", "b"], {}),
    "utf16_half.jsonl": (
        '{"text": "a"}\n{"text": "\ud800"}\n{"text": "b"}\n'.encode("utf-16", "surrogatepass"),
        ["a", "b"],
        {":2": "undecodable"},
    ),
    "utf16_odd.jsonl": ('{"text": "a"}\n'.encode("utf-16") + b"\n", ["a"], {"": "damaged_file"}),
    "utf32.txt": ("naïve 😀".encode("utf-32"), ["naïve 😀"], {}),
    "utf32_unmarked.txt": ("plain English".encode("utf-32-be"), ["plain English"], {}),
    "surrogates.jsonl": (rb'{"text": "a\ud800b \ud83d\ude00"}', ["a\ufffdb 😀"], {}),
    "emoji.txt": ("👩\u200d👩\u200d👧 ok 🏳️".encode(), ["👩\u200d👩\u200d👧 ok 🏳️"], {}),
    "right_to_left.txt": ("\u202bשלום עולם\u202c".encode(), ["שלום עולם"], {}),
    "page.txt": (b"<p>one</p>&nbsp;<script>x</script>", ["<p>one</p>&nbsp;<script>x</script>"], {}),
    "special.txt": (b"[CLS] a [MASK] b [SEP] [PAD]", ["[CLS] a [MASK] b [SEP] [PAD]"], {}),
    "long_line.jsonl": (b'{"text": "' + b"word " * 200_000 + b'"}\n', [("word " * 200_000).strip()], {}),
    "not_json.jsonl": (b'{"text": "a"}\n{"text": \n}\nNaN\n{"text": "b"}\n', ["a", "b"], {
        ":2": "not_json", ":3": "not_json", ":4": "not_an_object",
    }),
    "no_objects.jsonl": (b'[1]\n"text"\n3\nnull\n{}\n{"text": 3}\n{"text": null}\n', [], {
        ":1": "not_an_object", ":2": "not_an_object", ":3": "not_an_object", ":4": "not_an_object",
        ":5": "no_text_field", ":6": "no_text_field", ":7": "no_text_field",
    }),
    "deep.jsonl": (b"[" * 200_000 + b'\n{"text": "fine"}\n', ["fine"], {":1": "not_json"}),
    "digits.jsonl": (b'{"n": ' + b"9" * 5000 + b'}\n{"text": "fine"}\n', ["fine"], {":1": "not_json"}),
    "no_gzip.jsonl.gz": (b'{"text": "a"}\n', [], {"": "damaged_file"}),
    "no_zstd.jsonl.zst": (b'{"text": "a"}\n', [], {"": "damaged_file"}),
    "no_parquet.parquet": (b"PAR1 and more", [], {"": "damaged_file"}),
    "cut.parquet": (PARQUET[:-100], [], {"": "damaged_file"}),
    "padded.txt.gz": (gzip.compress(b"one ") + gzip.compress(b"two") + bytes(512), ["one two"], {}),
    "two_frames.txt.zst": (ZSTD(b"one ") + b"\x50\x2a\x4d\x18\x04\0\0\0skip" + ZSTD(b"two"), ["one two"], {}),
    "no_xz.jsonl.xz": (b'{"text": "a"}\n', [], {"": "damaged_file"}),
    "no_bzip2.jsonl.bz2": (b'{"text": "a"}\n', [], {"": "damaged_file"}),
    "two_streams.txt.xz": (lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two"), ["one two"], {}),
    "two_streams.txt.bz2": (bz2.compress(b"one ") + bz2.compress(b"two"), ["one two"], {}),
    "trailing.txt.xz": (lzma.compress(b"one") + b"garbage", [], {"": "damaged_file"}),
    "trailing.txt.bz2": (bz2.compress(b"one") + b"garbage", [], {"": "damaged_file"}),
    "empty.txt.xz": (b"", [], {"": "empty"}),
    "trailing.txt.gz": (gzip.compress(b"one") + b"garbage", [], {"": "damaged_file"}),
}  # fmt: skip


def read(path, **options):
    config = CorpusConfig(paths=str(path), **options)
    files = find_corpus_files(config)
    partitions = plan_partitions(files, [survey(file, config) for file in files])
    cleaning = CleaningConfig()
    items = [item for p in partitions for item in read_partition(files[p.file], p, config, cleaning)]
    for item in items:
        if isinstance(item, Reject):
            json.dumps(vars(item)).encode()
            item.sample.encode()
            assert len(item.sample) <= 1000
            assert str(path) not in item.detail
    return items


def documents(items):
    return [item.text for item in items if isinstance(item, Document)]


def rejects(items):
    return {item.id: item.reason for item in items if isinstance(item, Reject)}


@pytest.mark.parametrize("name", NASTY)
def test_one_file(tmp_path, name):
    content, expected, reasons = NASTY[name]
    (tmp_path / name).write_bytes(content)
    items = read(tmp_path)
    assert documents(items) == expected
    assert rejects(items) == {f"{name}{place}": reason for place, reason in reasons.items()}


def test_all_in_one_folder(tmp_path):
    for name, (content, _, _) in NASTY.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "folder.txt" / "inner.txt").write_text("inner")
    items = read(tmp_path)
    assert sorted(documents(items)) == sorted([*(text for _, texts, _ in NASTY.values() for text in texts), "inner"])
    expected = {f"{n}{place}": reason for n, (_, _, reasons) in NASTY.items() for place, reason in reasons.items()}
    assert rejects(items) == expected
    assert "inner" not in documents(read(tmp_path / "*.txt"))  # a folder that a glob matches is left out


@pytest.mark.parametrize("cut", [1, 7, 8, 30, 500])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".zst", ZSTD), (".xz", lzma.compress), (".bz2", bz2.compress)],
)
def test_documents_before_the_end_of_a_truncated_file_are_kept(tmp_path, suffix, compress, cut):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(LINES)[:-cut])
    items = read(path)
    kept = documents(items)
    assert kept == [json.loads(line)["text"] for line in LINES.splitlines()[: len(kept)]]
    assert len(kept) > (190 if suffix == ".gz" and cut < 500 else -1)
    assert list(rejects(items).values()) == ["damaged_file"]
    assert items[-1].reason == "damaged_file"


def test_documents_before_a_flipped_bit_are_kept(tmp_path):
    data = bytearray(gzip.compress(LINES))
    data[len(data) * 3 // 4] ^= 64
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    items = read(tmp_path)
    kept = documents(items)
    assert len(kept) > 100
    assert kept[:100] == [json.loads(line)["text"] for line in LINES.splitlines()[:100]]
    assert "damaged_file" in rejects(items).values()


def test_other_row_groups_than_the_damaged_are_kept(tmp_path):
    data = bytearray(write_parquet(
        [f"text {i} {i**i}" for i in range(200)], row_group_size=50, compression="gzip", use_dictionary=False
    ))  # fmt: skip
    start = len(data) * 3 // 10
    data[start : start + 200] = os.urandom(200)
    (tmp_path / "a.parquet").write_bytes(data)
    items = read(tmp_path)
    assert len(documents(items)) >= 150
    assert list(rejects(items).values()) == ["damaged_file"]


def test_a_line_of_a_megabyte_is_one_document_in_every_mode(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 1_000_000)
    for mode in ("file", "line", "paragraph"):
        assert [len(text) for text in documents(read(tmp_path, txt_documents=mode))] == [1_000_000]


FIND = """
import os, sys
from data_prep.contract.command_line import UserError
from data_prep.config import CorpusConfig
from data_prep.corpus.files import find_corpus_files
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)  # a user who may not read what others keep for themselves
try:
    print(len(find_corpus_files(CorpusConfig(paths=sys.argv[1]))))
except UserError as error:
    print(error)
"""


def found_by_nobody(path):
    ended = subprocess.run([sys.executable, "-c", FIND, path], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_what_may_not_be_read_is_named_before_any_work():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        base = Path(name)
        for folder in ("files", "closed", "open"):
            (base / folder).mkdir(mode=0o755)
            (base / folder / "a.txt").write_text("text")
        (base / "files" / "secret.txt").write_text("text")
        (base / "files" / "secret.txt").chmod(0)
        (base / "closed").chmod(0)
        base.chmod(0o755)
        try:
            assert found_by_nobody(base / "open") == "1"
            expected = f"cannot read the corpus file {base}/files/secret.txt: permission denied"
            for path in (base / "files", base / "files" / "*.txt", base / "files" / "secret.txt"):
                assert found_by_nobody(path) == expected
            assert found_by_nobody(base / "closed") == f"cannot read the corpus folder {base}/closed: Permission denied"
            assert f"{base}/closed may not be entered" in found_by_nobody(base / "closed" / "a.txt")
            assert "cannot read the corpus folder" in found_by_nobody(base)
        finally:
            (base / "closed").chmod(0o755)

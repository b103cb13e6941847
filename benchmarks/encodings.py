"""How often texts in encodings that nobody named are read right: narrowbert-prep beside charset-normalizer alone.

The texts are the paragraphs of the tests, in languages and encodings, whole and cut to their first characters. With
``--folder`` they are files instead, each in a folder that has the name of its encoding, or that and a language
behind a hyphen. A text is right where it comes out as the codec of its true encoding gives it, in NFC; it is rejected
where nothing comes out; else it is wrong without a word.
"""

import argparse
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from results import record

sys.path.insert(0, str(Path(__file__).parents[1]))

CUTS = (None, 100)
"""Characters that are left of each paragraph."""


def paragraphs(cut: int | None) -> Iterator[tuple[bytes, str]]:
    """(bytes, text) of the paragraphs of the tests."""
    from tests.data_prep.corpus.encodings.paragraphs import cases, encoded

    for language, encoding in cases():
        raw = encoded(language, encoding)
        assert raw is not None
        text = raw.decode(encoding)[:cut]
        raw = text.encode(encoding)
        if encoding.startswith(("utf", "iso2022", "hz")) or not raw.isascii():
            yield raw, text


def files(folder: Path) -> Iterator[tuple[bytes, str]]:
    """(bytes, text) of the files whose folders name a codec of Python that reads them."""
    from data_prep.contract.shell.encodings import codec_of

    for path in sorted(folder.glob("*/*")):
        names = (path.parent.name, path.parent.name.rpartition("-")[0])
        codec = next((codec for name in names if (codec := codec_of(name))), None)
        if codec is not None and path.is_file():
            try:
                yield path.read_bytes(), path.read_bytes().decode(codec)
            except UnicodeDecodeError:
                continue


def prepared(raw: bytes, folder: Path) -> str | None:
    """The text as ``narrowbert-prep`` reads it; None where it is rejected."""
    from data_prep.config import CorpusConfig
    from data_prep.corpus.files import find_corpus_files
    from data_prep.corpus.streams import DamagedFile, open_text

    path = folder / "text.txt"
    path.write_bytes(raw)
    stream = open_text(find_corpus_files(CorpusConfig(paths=str(path)))[0])
    try:
        content = stream.read(1 << 30)
        return None if stream.damage is not None else stream.decoder.text(content)
    except DamagedFile:
        return None
    finally:
        stream.close()


def normalized(raw: bytes, _: Path) -> str | None:
    """The text as charset-normalizer reads it."""
    from charset_normalizer import from_bytes

    best = from_bytes(raw).best()
    return None if best is None else str(best)


def outcome(text: str | None, truth: str) -> str:
    if text is None:
        return "rejected"
    same = unicodedata.normalize("NFC", text).lstrip("\ufeff") == unicodedata.normalize("NFC", truth).lstrip("\ufeff")
    return "right" if same else "wrong"


def measured(name: str, read: Callable[[bytes, Path], str | None], texts: list[tuple[bytes, str]]) -> dict[str, str]:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        read(texts[0][0], Path(folder))  # tables and modules are loaded
        start = time.perf_counter()
        found = Counter(outcome(read(raw, Path(folder)), truth) for raw, truth in texts)
        seconds = time.perf_counter() - start
    shares = {key: f"{found[key] / len(texts):.1%}" for key in ("right", "wrong", "rejected")}
    return {"reader": name, "texts": f"{len(texts)}", **shares, "ms a text": f"{1000 * seconds / len(texts):.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true", help="add the rows to results/encodings.jsonl")
    options = parser.parse_args()
    rows = []
    for cut in (None,) if options.folder else CUTS:
        texts = list(files(options.folder) if options.folder else paragraphs(cut))
        length = "whole" if cut is None else f"first {cut} characters"
        for name, read in (("narrowbert-prep", prepared), ("charset-normalizer", normalized)):
            rows.append({"length": length, **measured(name, read, texts)})
            print(rows[-1])
    if options.record:
        record("encodings", "accuracy", rows)


if __name__ == "__main__":
    main()

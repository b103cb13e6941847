"""Counts letters and pairs of them in translations, and writes them as data_prep/corpus/encodings/letters.npz.

``python benchmarks/letter_shares.py FOLDER`` reads every ``LANGUAGE/LC_MESSAGES/*.po`` below FOLDER. The file in the
repository was made of those of Django 5.2, Sphinx 9.0, Django REST framework 3.18, Wagtail 8.0, django-oscar 4.2,
django-allauth 65.22, django CMS 5.1, Horizon 27.0 and Kolibri 0.19: programs under BSD, MIT and Apache licences.
The same folder gives the same tables.
"""

import argparse
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

IDEOGRAPHIC = ("zh_Hans", "zh_Hant", "ja", "ko")
NAMES = {
    "zh_CN": "zh_Hans", "zh-Hans": "zh_Hans", "zh": "zh_Hans", "zh_TW": "zh_Hant", "zh_HK": "zh_Hant",
    "zh-Hant": "zh_Hant", "sr@latin": "sr_Latn", "sr@Latn": "sr_Latn", "nb": "no", "nb_NO": "no", "nn": "no",
    "ca@valencia": "ca",
}  # fmt: skip
LEFT_OUT = {"en_AU", "en_GB", "en_CA", "en", "zh_TW.Big5"}
NO_CODE_PAGE = {
    "hi", "bn", "ne", "mr", "kn", "ta", "pa", "dv", "as", "mai", "gu", "mni", "brx", "kok", "ml", "te", "my", "km",
    "am", "si", "cak", "fil", "lb", "fy", "udm", "kab", "es_419", "ka", "hy", "ku", "io", "ia",
}  # fmt: skip
"""Languages without one among Python's, or with hardly any text."""

LEAST_CHARACTERS = 4_000
QUANTUM = 12
MARKUP = re.compile(r"%\([^)]*\)\w|%[-\d.]*[sdr]|\{[^}]*\}|<[^>]*>|&\w+;|`[^`]*`|:\w+:|https?:\S+|[*_|#]")


def translations(path: Path) -> Iterator[str]:
    """The translated messages of one file, without its head and without markup."""
    found: list[list[str]] = []
    open_message = False
    for line in path.read_text("utf-8", "replace").splitlines():
        start = re.match(r'msgstr(?:\[\d\])?\s+"(.*)"$', line)
        if start:
            found.append([start[1]])
            open_message = True
        elif line.startswith('"') and open_message:
            found[-1].append(line[1:-1])
        else:
            open_message = False
    for parts in found[1:]:
        text = "".join(parts).replace("\\n", "\n").replace('\\"', '"').replace("\\t", " ")
        text = MARKUP.sub(" ", text)
        if text.strip():
            yield text


def texts(folder: Path) -> dict[str, str]:
    """Language -> all of its messages, each once, in NFC."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for path in sorted(folder.glob("**/LC_MESSAGES/*.po")):
        name = path.parent.parent.name
        if name not in LEFT_OUT:
            name = NAMES.get(name, name)
            name = name[:2] if re.fullmatch(r"[a-z]{2}_[A-Z]{2}", name) else name
            found[name].update(dict.fromkeys(translations(path)))
    return {name: unicodedata.normalize("NFC", "\n".join(messages)) for name, messages in found.items()}


def quanta(shares: np.ndarray) -> np.ndarray:
    """u8 of f64: -ln in twelfths of a nat, 255 for a share of 0."""
    steps = np.clip(np.round(-np.log(np.maximum(shares, 1e-9)) * QUANTUM), 0, 254)
    return np.where(shares > 0, steps, 255).astype(np.uint8)


def letter_tables(found: dict[str, str]) -> dict[str, np.ndarray]:
    """The shares of letters, and of pairs among all that begin with the same letter."""
    from data_prep.corpus.encodings.letters import symbols_of

    names = sorted(
        name for name, text in found.items()
        if name not in (*IDEOGRAPHIC, *NO_CODE_PAGE) and len(text) > LEAST_CHARACTERS
    )  # fmt: skip
    symbols = {name: symbols_of(found[name]).tolist() for name in names}
    single = {name: Counter(symbols[name]) for name in names}
    double = {name: Counter(zip(symbols[name], symbols[name][1:], strict=False)) for name in names}
    letters = sorted(set().union(*single.values()))
    pairs = sorted({pair for counts in double.values() for pair, count in counts.items() if count > 1})
    shares = np.array([[single[name][letter] / len(symbols[name]) for letter in letters] for name in names])
    pair_shares = np.zeros((len(names), len(pairs)))
    for row, name in enumerate(names):
        for column, pair in enumerate(pairs):
            count = double[name][pair]
            if count:
                pair_shares[row, column] = count / single[name][pair[0]] * count / (count + 0.5)
    codes = np.array(pairs, dtype=np.uint32)
    return {
        "languages": np.array(names), "letters": np.array(letters, dtype=np.uint32), "shares": quanta(shares),
        "pairs": codes[:, 0] * 65536 + codes[:, 1], "pair_shares": quanta(pair_shares),
    }  # fmt: skip


def character_tables(found: dict[str, str]) -> dict[str, np.ndarray]:
    """The shares of characters in the languages that have thousands of them."""
    counts = {name: Counter(character for character in found[name] if character > "\x7f") for name in IDEOGRAPHIC}
    characters = sorted(
        {c for some in counts.values() for c, count in some.items() if ord(c) >= 0x2E80 or count > 2}
    )  # fmt: skip
    shares = np.array([[counts[name][c] / counts[name].total() for c in characters] for name in IDEOGRAPHIC])
    codes = np.array([ord(character) for character in characters], dtype=np.uint32)
    return {"characters": codes, "character_shares": quanta(shares)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    found = texts(parser.parse_args().folder)
    target = Path(__file__).parents[1] / "data_prep" / "corpus" / "encodings" / "letters.npz"
    tables: dict[str, Any] = {**letter_tables(found), **character_tables(found)}
    np.savez_compressed(target, **tables)
    print(f"{target}: {target.stat().st_size} bytes")

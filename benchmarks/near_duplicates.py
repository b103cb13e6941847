"""Near-duplicates: how many copies with changes are found, how many different documents are dropped, and CPU time.

``python benchmarks/near_duplicates.py --texts 'novels/*.jsonl.gz' [--documents 400] [--record]``

English documents are stretches of the texts. The tests' generators make documents of other scripts. A copy has 5% of
its characters replaced by letters of its script, each place drawn by itself, or 5% of its words by others of it.
Documents of one template have as many words of it as of their own. Books are whole texts. Each choice of shingles goes
through signatures, bands and pairs as in a preparation. CPU time is that of the signatures of English documents of each
length; bytes are those that a document takes on disk until the shards are made.
"""

import argparse
import gzip
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from results import record

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_prep.filters.near_duplicates import (
    BAND_KEY,
    NUM_PERMUTATIONS,
    band_count,
    band_table,
    near_pairs,
    near_signature,
    near_survivors,
)
from tests.data_prep.filters.generated_text import changed, sentences

CHANGED = 0.05
BOOKS, BOOK_CHARACTERS = 40, 1_000_000
LENGTHS = (100, 300, 1_000)
"""Words of English documents."""
SENTENCES = 40
"""Of generated documents, of 12 words each."""


class Choice(NamedTuple):
    """What decides which documents are near."""

    characters: int | None
    threshold: float

    @property
    def name(self) -> str:
        """As the table shows it."""
        return "5 words" if self.characters is None else f"{self.characters} characters"


CHOICES = (
    Choice(None, 0.8),
    Choice(None, 0.4),
    Choice(5, 0.5),
    Choice(7, 0.4),
    Choice(9, 0.35),
)


def whole_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The texts of all files."""
    for path in paths:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
            for line in stream:
                yield json.loads(line)["text"]


def stretches(paths: Sequence[Path], words: int, count: int) -> list[str]:
    """At most so many different stretches of so many words, drawn from all texts."""
    places: list[tuple[list[str], int]] = []
    for text in whole_texts(paths):
        split = text.split(" ")
        places += [(split, start) for start in range(0, len(split) - words + 1, words)]
    drawn = random.Random(words).sample(places, min(count, len(places)))
    return [" ".join(split[start : start + words]) for split, start in drawn]


def changed_words(text: str, seed: int) -> str:
    """The text with other words of its own at 5% of its places."""
    draw = random.Random(seed)
    words = text.split(" ")
    return " ".join(draw.choice(words) if draw.random() < CHANGED else word for word in words)


def dropped(choice: Choice, signatures: np.ndarray) -> np.ndarray:
    """The rows of [documents, 128] u32 signatures that are near to an earlier one that is kept."""
    table = band_table(signatures, choice.threshold, choice.characters)
    pairs = near_pairs(table["key"], table["row"].astype(np.int64), lambda rows: signatures[rows], choice.threshold)
    return near_survivors(pairs)[0]


def signed(choice: Choice, texts: Sequence[str]) -> np.ndarray:
    """[documents, 128] u32."""
    return np.array([near_signature(text, choice.characters) for text in texts])


def measured(choice: Choice, english: dict[int, list[str]], books: list[str]) -> dict[str, str]:
    """One line of the table."""
    row = {"shingles": choice.name, "threshold": f"{choice.threshold:g}"}
    unlike, milliseconds = [], []
    for words, texts in english.items():
        start = time.process_time()
        signatures = signed(choice, texts)
        milliseconds.append(f"{1_000 * (time.process_time() - start) / len(texts):.1f}")
        unlike.append(signatures)
        copies = signed(choice, [changed(text, "English", seed, CHANGED) for seed, text in enumerate(texts)])
        row[f"English, {words:,} words"] = found(choice, signatures, copies)
    texts = english[LENGTHS[1]]
    copies = [changed_words(text, seed) for seed, text in enumerate(texts)]
    row["words changed"] = found(choice, unlike[1], signed(choice, copies))
    for script in ("Chinese", "Thai", "Hindi"):
        generated = ["".join(sentences(script, SENTENCES, seed)) for seed in range(len(texts) // 4)]
        unlike.append(signed(choice, generated))
        copies = signed(choice, [changed(text, script, seed, CHANGED) for seed, text in enumerate(generated)])
        row[script] = found(choice, unlike[-1], copies)
    of_template = signed(choice, [f"{texts[0]}\n{text}" for text in texts[1:]])
    return {
        **row,
        "different": share(choice, unlike),
        "books": share(choice, [signed(choice, books)]),
        "one template": share(choice, [of_template]),
        "CPU ms": " / ".join(milliseconds),
        "bytes": f"{4 * NUM_PERMUTATIONS + BAND_KEY.itemsize * band_count(choice.threshold, choice.characters):,}",
    }


def share(choice: Choice, corpora: Sequence[np.ndarray]) -> str:
    """How many documents are dropped of several corpora, by their signatures."""
    return f"{sum(len(dropped(choice, signatures)) for signatures in corpora)} of {sum(map(len, corpora)):,}"


def found(choice: Choice, originals: np.ndarray, copies: np.ndarray) -> str:
    """Share of the copies that are dropped, where all originals and copies are one corpus."""
    rows = dropped(choice, np.concatenate([originals, copies]))
    return f"{np.count_nonzero(rows >= len(originals)) / len(copies):.1%}"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, type=Path, help=".jsonl or .jsonl.gz with a field text")
    parser.add_argument("--documents", type=int, default=400, help="English documents of each length")
    parser.add_argument("--record", action="store_true", help="add the rows to results/near_duplicates.jsonl")
    options = parser.parse_args()
    english = {words: stretches(options.texts, words, options.documents) for words in LENGTHS}
    books = [text[:BOOK_CHARACTERS] for text in itertools.islice(whole_texts(options.texts), BOOKS)]
    near_signature("The first call loads what it needs.", 7)
    rows = []
    for choice in CHOICES:
        rows.append(measured(choice, english, books))
        print(rows[-1], flush=True)
    if options.record:
        record("near_duplicates", "copies", rows)


if __name__ == "__main__":
    main()

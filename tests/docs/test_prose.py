"""Pages stay readable: short sentences, and a first page that ends."""

import statistics

from tests.docs.pages import ROOT, text_of
from tests.house.measures import prose_files, sentences

MEAN_WORDS, LONG_WORDS, LONG_SHARE = 16, 30, 0.02


def test_sentences_are_short() -> None:
    lengths = [len(words) for path in prose_files(ROOT) for words in sentences(path)]
    assert statistics.mean(lengths) <= MEAN_WORDS


def test_few_sentences_are_long() -> None:
    found = [words for path in prose_files(ROOT) for words in sentences(path)]
    long = [" ".join(words) for words in found if len(words) > LONG_WORDS]
    assert len(long) <= LONG_SHARE * len(found), long


def test_readme_fits_on_130_lines() -> None:
    assert len(text_of("README.md").splitlines()) <= 130

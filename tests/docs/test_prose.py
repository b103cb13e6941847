"""Pages stay readable: short sentences, and a first page that ends."""

import statistics

from tests.docs.pages import OUTSIDE, sentences_of, text_of, written_pages

MEAN_WORDS, LONG_WORDS, LONG_SHARE = 16, 30, 0.03


def test_sentences_of_readme_and_docs_are_short() -> None:
    pages = ["README.md", "ARCHITECTURE.md", *(page for page in written_pages() if page not in OUTSIDE)]
    sentences = [sentence for page in pages for sentence in sentences_of(page)]
    assert statistics.mean(len(sentence.split()) for sentence in sentences) <= MEAN_WORDS
    long = [sentence for sentence in sentences if len(sentence.split()) > LONG_WORDS]
    assert len(long) <= LONG_SHARE * len(sentences), long


def test_readme_fits_on_130_lines() -> None:
    assert len(text_of("README.md").splitlines()) <= 130

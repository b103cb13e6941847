"""Rows printed for a reader."""

import dataclasses
import re
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from data_prep.config import CorpusConfig, PackingConfig, PrepConfig, VocabularyConfig
from data_prep.contract.shards import open_shards
from data_prep.contract.tokenizer import save_tokenizer
from data_prep.corpus.cleaning import clean
from data_prep.report.rows_as_text import rows_as_text
from data_prep.stages.build import build_shards
from data_prep.stages.vocabulary import build_vocabulary
from data_prep.tokens.vocabulary import train_tokenizer
from tests.data_prep.conftest import no_progress
from tests.data_prep.stages.test_stages import NoProgress, corpus_of
from tests.data_prep.tokens.languages import SAMPLES

WORDS = ["ξεσκεπάζω", "ภาษาไทย", "naïve", "house", "日本語"]


def test_rows_of_a_byte_level_vocabulary_are_readable(tiny_config: PrepConfig, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[(n + shift) % 5] for shift in range(40)) + f" {n}" for n in range(120)]
    tokenizer = train_tokenizer(lambda: texts, VocabularyConfig(model="bpe", size=300, lowercase=False))
    save_tokenizer(tokenizer, tmp_path / "bpe.json")
    config = dataclasses.replace(
        tiny_config,
        corpus=CorpusConfig(paths=corpus_of(tmp_path / "corpus", texts).paths),
        tokenizer=str(tmp_path / "bpe.json"),
        output=str(tmp_path / "shards"),
        vocabulary=VocabularyConfig(model="bpe", lowercase=False),
    )
    build_shards(config, no_progress)
    shown = "\n".join(rows_as_text(open_shards(config.output), "train", 30, 0))
    assert "Ġ" not in shown
    plain = re.sub(r"\{([^{}]*?)(?:->[^{}]*|=)\}", r"\1", shown)
    for word in WORDS:
        assert f" {word} " in plain, word
    assert "{" in shown
    assert "->[MASK]}" in shown


FOLDED = {"German", "French", "Spanish", "Portuguese", "Polish", "Czech", "Hungarian", "Turkish", "Vietnamese",
          "Russian", "Ukrainian", "Greek", "emoji"}  # fmt: skip
"""Of which the default keeps less than the letters: it tells the share of accents that it strips."""


@pytest.mark.parametrize(("model", "lowercase"), [("wordpiece", True), ("bpe", False), ("unigram", True)])
def test_rows_give_the_text_of_every_language_back(
    model: Literal["wordpiece", "bpe", "unigram"], lowercase: bool, tiny_config: PrepConfig, tmp_path: Path
) -> None:
    texts = [f"{text} {number}" for text in SAMPLES.values() for number in range(5)]
    config = dataclasses.replace(
        tiny_config,
        corpus=CorpusConfig(paths=corpus_of(tmp_path / "corpus", texts).paths),
        tokenizer=str(tmp_path / "t.json"),
        output=str(tmp_path / "shards"),
        vocabulary=VocabularyConfig(model=model, lowercase=lowercase, size=2200, min_frequency=1),
        packing=PackingConfig(mode="document"),
        seq_length=256,
        validation_fraction=0.3,
    )
    progress = NoProgress()
    built = build_vocabulary(config, progress)
    assert built.unknown_share == 0
    build_shards(config, progress)
    assert any("strips accents" in note for note in progress.notes) == lowercase == bool(built.notes)
    folder = open_shards(config.output)
    rows = [row for split in ("train", "validation") for row in rows_as_text(folder, split, 200, 0)]
    shown = {_plain(row.split("\n", 1)[1]) for row in rows}
    for language, text in SAMPLES.items():
        kept = clean(text)
        if lowercase:
            kept = kept.lower()
        if lowercase and language in FOLDED:
            kept = "".join(c for c in unicodedata.normalize("NFD", kept) if unicodedata.category(c) != "Mn")
            kept = unicodedata.normalize("NFC", kept)
        assert "".join(kept.split()) + "0" in shown, language


def _plain(row: str) -> str:
    """A printed row without marks of masks, frame and blanks."""
    text = re.sub(r"\{([^{}]*?)(?:->[^{}]*|=)\}", r"\1", row).replace("##", "")
    return "".join(text.replace("[CLS]", "").replace("[SEP]", "").replace("| ", "").split())

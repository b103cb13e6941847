"""Rows printed for a reader."""

import dataclasses
import re
from pathlib import Path

from data_prep.config import CorpusConfig, PrepConfig, VocabularyConfig
from data_prep.contract.shards import open_shards
from data_prep.contract.tokenizer import save_tokenizer
from data_prep.report.rows_as_text import rows_as_text
from data_prep.stages.build import build_shards
from data_prep.tokens.vocabulary import train_tokenizer
from tests.data_prep.conftest import no_progress
from tests.data_prep.stages.test_stages import corpus_of

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

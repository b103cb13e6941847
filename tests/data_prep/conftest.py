"""A tiny corpus, its tokenizer and its shards, made once for all tests of a session."""

import json
import random
from pathlib import Path

import pytest

from data_prep.config import CorpusConfig, MaskConfig, PrepConfig, VocabularyConfig
from data_prep.contract import remote
from data_prep.contract.tokenizer import save_tokenizer
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.reading import read_texts
from data_prep.stages.build import build_shards
from data_prep.tokens.vocabulary import train_tokenizer

PANGRAM = """the quick brown fox jumps over a lazy dog while seven small wizards quietly boil unusual potions
    near rivers forests mountains reading writing singing walked walking talked talking house houses green"""
WORDS = PANGRAM.split()


class NoProgress:
    """Shows nothing, keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None: ...

    def advance(self, count: int, documents: int = 0) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


no_progress = NoProgress()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once, three times."""
    monkeypatch.setattr(remote, "DELAYS_S", (0.01, 0.01, 0.01))


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of 40 to 400 words, in one .jsonl file and two .txt files."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(5)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(40, 400))) + "." for _ in range(60)]
    lines = [json.dumps({"text": text}) for text in texts[2:]]
    (folder / "many.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "first.txt").write_text(texts[0], encoding="utf-8")
    (folder / "second.txt").write_text(texts[1] + " [MASK] [SEP] [PAD]", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary trained on the tiny corpus."""
    config = PrepConfig(output="", corpus=CorpusConfig(paths=(str(corpus_folder),)))
    texts = list(read_texts(find_corpus_files(config.corpus), config))
    tokenizer = train_tokenizer(lambda: texts, VocabularyConfig(size=200, alphabet_size=100))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    return path


@pytest.fixture(scope="session")
def tiny_config(corpus_folder: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """Rows of 32 tokens, 3 variants, chunks of 16 rows, shards of 64."""
    return PrepConfig(
        output=str(tmp_path_factory.mktemp("prep") / "shards"),
        tokenizer=str(tokenizer_file),
        corpus=CorpusConfig(paths=(str(corpus_folder),)),
        vocabulary=VocabularyConfig(size=200),
        seq_length=32,
        mask=MaskConfig(variants=3),
        validation_fraction=0.2,
        chunk_rows=16,
        rows_per_shard=64,
        num_workers=1,
    )


@pytest.fixture(scope="session")
def tiny_shards(tiny_config: PrepConfig) -> Path:
    """The shards of `tiny_config`; not to be changed, copy them first."""
    build_shards(tiny_config, no_progress)
    return Path(tiny_config.output)

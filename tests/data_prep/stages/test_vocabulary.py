"""Which documents a vocabulary is trained on."""

import dataclasses
import json
import os
import random
from collections import Counter

import pytest

from data_prep.config import CorpusConfig, DuplicatesConfig, VocabularyConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.tokenizer import load_tokenizer
from data_prep.corpus.draws import copies_of
from data_prep.filter_config import FiltersConfig, LanguageConfig, RatiosConfig
from data_prep.report.statistics import notes_on_tokens
from data_prep.stages.vocabulary import TrainingCorpus, build_vocabulary
from data_prep.stages.workers import Workers
from tests.data_prep.conftest import WORDS, no_progress


def write_corpus(folder, name, documents, seed):
    """A file of documents of 200 bytes that begin with the file's name; as they are."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(seed)
    texts = [f"{name} {number} {' '.join(draw.choices(WORDS, k=60))}"[:199] + "." for number in range(documents)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, documents in (("large", 600), ("small", 200)):
        write_corpus(folder, name, documents, seed=documents)
    return folder


def config_of(tiny_config, folder, tmp_path, *, names=("large", "small"), sample_bytes=None, workers=1, **corpus):
    return dataclasses.replace(
        tiny_config,
        output=str(tmp_path / "out"),
        tokenizer=str(tmp_path / f"{workers}-{names[0]}.json"),
        corpus=CorpusConfig(paths=tuple(str(folder / f"{name}.jsonl") for name in names), **corpus),
        vocabulary=VocabularyConfig(size=300, sample_bytes=sample_bytes),
        num_workers=workers,
    )


def texts_of(config):
    with Workers(config.num_workers, own_threads=True) as workers:
        corpus = TrainingCorpus(config, workers, no_progress)
        return list(corpus.texts()), corpus


def begins(texts):
    return Counter(text.split()[0] for text in texts)


def test_a_sample_fits_and_takes_of_each_source_its_share(tiny_config, folder, tmp_path):
    sampled, corpus = texts_of(config_of(tiny_config, folder, tmp_path, sample_bytes=40_000))
    assert corpus.text_bytes == 160_000
    assert corpus.trained_bytes == sum(map(len, sampled)) == 40_000
    assert begins(sampled)["small"] == pytest.approx(50, abs=15)
    assert len(set(sampled)) == len(sampled)
    larger, _ = texts_of(config_of(tiny_config, folder, tmp_path, sample_bytes=80_000))
    assert set(sampled) < set(larger)
    whole, _ = texts_of(config_of(tiny_config, folder, tmp_path, sample_bytes=160_000))
    assert begins(whole) == {"large": 600, "small": 200}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sample_is_the_same_for_any_order_of_files_and_number_of_processes(tiny_config, folder, tmp_path, workers):
    first = config_of(tiny_config, folder, tmp_path, sample_bytes=30_000)
    second = config_of(tiny_config, folder, tmp_path, sample_bytes=30_000, names=("small", "large"), workers=workers)
    built, again = build_vocabulary(first, no_progress), build_vocabulary(second, no_progress)
    assert built.sha256 == again.sha256
    assert built.trained_bytes == again.trained_bytes == 30_000
    assert (built.unknown_share, built.rejects) == (again.unknown_share, again.rejects)
    everything = build_vocabulary(config_of(tiny_config, folder, tmp_path / "all"), no_progress)
    assert everything.sha256 != built.sha256


def test_weights_are_those_of_the_rows(tiny_config, folder, tmp_path):
    texts, corpus = texts_of(config_of(tiny_config, folder, tmp_path, weights=(0.5, 2.0)))
    assert corpus.text_bytes == corpus.trained_bytes == sum(map(len, texts))
    kept = [number for number in range(600) if copies_of(f"large.jsonl:{number + 1}", 0.5)]
    assert [int(text.split()[1]) for text in texts if text.startswith("large")] == kept
    assert begins(texts)["small"] == 400
    texts, _ = texts_of(config_of(tiny_config, folder, tmp_path, weights=(0.0, 1.0)))
    assert begins(texts) == {"small": 200}
    texts, _ = texts_of(config_of(tiny_config, folder, tmp_path, weights=(1.0, 3.0), sample_bytes=40_000))
    assert begins(texts)["small"] == pytest.approx(100, abs=20)
    assert len(set(texts)) == len(texts)  # other documents rather than the same ones again


def test_a_temperature_repeats_the_smaller_source(tiny_config, folder, tmp_path):
    texts, corpus = texts_of(config_of(tiny_config, folder, tmp_path, temperature=2.0))
    assert corpus.weights == {0: 1, 1: pytest.approx(3**0.5, abs=1e-4)}
    assert begins(texts)["large"] == 600
    assert begins(texts)["small"] == sum(copies_of(f"small.jsonl:{n + 1}", corpus.weights[1]) for n in range(200))
    texts, _ = texts_of(config_of(tiny_config, folder, tmp_path, temperature=1000.0, sample_bytes=40_000))
    assert begins(texts)["small"] == pytest.approx(100, abs=20)


def test_the_validation_split_and_what_equals_it_are_not_trained_on(tiny_config, folder, tmp_path):
    texts = write_corpus(tmp_path / "held-out", "held", 5, seed=9)
    (folder / "with.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[:2], "some text"]))
    config = config_of(tiny_config, folder, tmp_path, names=("with", "small"), temperature=2.0)
    config = dataclasses.replace(config, validation_paths=(str(tmp_path / "held-out"),))
    for exact in (True, False):
        found, corpus = texts_of(dataclasses.replace(config, duplicates=DuplicatesConfig(exact=exact)))
        assert begins(found).keys() == {"some", "small"}
        assert corpus.rejects == {"in_validation": 2}
        assert min(corpus.weights) == 1, "those of the corpus alone"


def test_an_exact_duplicate_counts_once(tiny_config, folder, tmp_path):
    texts = write_corpus(tmp_path / "twice", "large", 50, seed=600)
    write_corpus(tmp_path / "twice", "other", 10, seed=1)
    path = tmp_path / "twice" / "other.jsonl"
    path.write_text(path.read_text() + json.dumps({"text": texts[3].replace(" ", "\n")}) + "\n")
    config = config_of(tiny_config, tmp_path / "twice", tmp_path, names=("large", "other"))
    found, corpus = texts_of(config)
    assert found[:50] == texts
    assert (len(found), corpus.rejects) == (60, {"duplicate": 1})
    found, corpus = texts_of(dataclasses.replace(config, duplicates=DuplicatesConfig(exact=False)))
    assert (len(found), corpus.rejects) == (61, {})


def test_what_the_filters_drop_is_not_trained_on(tiny_config, folder, tmp_path):
    config = config_of(tiny_config, folder, tmp_path)
    filters = FiltersConfig(ratios=RatiosConfig(enabled=True, max_punctuation=0.0))
    texts, corpus = texts_of(dataclasses.replace(config, filters=filters))
    assert texts == []
    assert sum(corpus.rejects.values()) == 800
    with pytest.raises(UserError, match=r"holds no text .*\(rejected: 800 ratios"):
        build_vocabulary(dataclasses.replace(config, filters=filters), no_progress)


@pytest.mark.parametrize("model", ["wordpiece", "bpe"])
def test_fertility_and_unknown_tokens_of_each_source_and_language(tiny_config, tmp_path, model):
    pytest.importorskip("fasttext")
    texts = {
        "en": "The old house stands near the river, and nobody has lived there for many years.",
        "de": "Das alte Haus steht am Fluss, und seit vielen Jahren hat dort niemand mehr gewohnt.",
    }
    for name, text in texts.items():
        lines = [json.dumps({"text": f"{text} {number}"}) for number in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = config_of(tiny_config, tmp_path, tmp_path, names=("en", "de"), weights=(1, 3))
    vocabulary = VocabularyConfig(size=300, alphabet_size=20, model=model)
    filters = FiltersConfig(language=LanguageConfig(enabled=True))
    built = build_vocabulary(dataclasses.replace(config, vocabulary=vocabulary, filters=filters), no_progress)
    assert list(built.tokens)[:2] == ["entry 1 of corpus.paths", "entry 2 of corpus.paths"]
    assert built.tokens["entry 1 of corpus.paths"] == built.tokens["language en"]
    tokenizer = load_tokenizer(built.path)
    notes = notes_on_tokens(built.tokens)
    for number, (name, text) in enumerate(texts.items()):
        sampled = [f"{text} {n}" for n in range(0, 30, 8 if model == "bpe" else 1)]
        encoded = [tokenizer.encode(text, add_special_tokens=False).tokens for text in sampled]
        counts = built.tokens[f"language {name}"]
        assert counts["words"] == sum(len(text.split()) for text in sampled)
        assert counts["tokens"] == sum(map(len, encoded))
        assert counts["unknown_tokens"] == sum(tokens.count("[UNK]") for tokens in encoded)
        fertility = counts["tokens"] / counts["words"]
        assert notes[number].startswith(f"entry {number + 1} of corpus.paths: {fertility:.2f} tokens a word")
    assert (built.unknown_share > 0) == (model == "wordpiece")


def test_a_sample_that_holds_no_document_is_refused(tiny_config, tmp_path):
    (tmp_path / "long.txt").write_text("word " * 1_000)
    config = dataclasses.replace(
        config_of(tiny_config, tmp_path, tmp_path, sample_bytes=1_000),
        corpus=CorpusConfig(paths=str(tmp_path / "long.txt")),
    )
    with pytest.raises(UserError, match=r"sample_bytes 1000 .* the smallest document has 4,999 bytes; raise it"):
        build_vocabulary(config, no_progress)


def test_a_corpus_that_changes_meanwhile_is_refused(tiny_config, tmp_path):
    write_corpus(tmp_path / "changing", "large", 50, seed=1)
    with Workers(1, own_threads=True) as workers:
        config = config_of(tiny_config, tmp_path / "changing", tmp_path, names=("large",))
        corpus = TrainingCorpus(config, workers, no_progress)
        os.utime(tmp_path / "changing" / "large.jsonl", ns=(0, 0))
        with pytest.raises(UserError, match=r"large\.jsonl changed while it was read"):
            list(corpus.texts())

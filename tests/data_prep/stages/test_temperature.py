"""Sources evened out by ``corpus.temperature``."""

import dataclasses
from pathlib import Path

import pytest

from data_prep.config import CorpusConfig, PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.corpus import partitions
from data_prep.reuse.kept_documents import append, open_kept, repack
from data_prep.stages.build import build_shards
from data_prep.stages.vocabulary import build_vocabulary
from tests.data_prep.conftest import NoProgress, no_progress
from tests.data_prep.reuse.test_kept_documents import tars_of
from tests.data_prep.stages.test_stages import corpus_of, sentences


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)


@pytest.fixture
def config(tiny_config: PrepConfig, tmp_path: Path) -> PrepConfig:
    """A large and a small source."""
    large = corpus_of(tmp_path / "large", sentences(300, 1), "large.jsonl").paths[0]
    small = corpus_of(tmp_path / "small", sentences(60, 2), "small.jsonl").paths[0]
    corpus = CorpusConfig(paths=(large, small), temperature=2.0)
    return dataclasses.replace(tiny_config, corpus=corpus, output=str(tmp_path / "shards"))


def test_the_rows_are_those_of_the_weights_it_gives(config: PrepConfig, tmp_path: Path) -> None:
    progress = NoProgress()
    build_shards(config, progress)
    sources = open_shards(config.output).manifest["statistics"]["sources"]
    weights = tuple(source["weight"] for source in sources)
    assert weights[0] == 1
    assert 2 < weights[1] < 2.5
    assert f"so many times: entry 1 1, entry 2 {weights[1]:g}" in "".join(progress.notes)
    report = (Path(config.output) / "report.html").read_text()
    assert "times taken" in report
    assert f"{weights[1]:g}" in report
    by_hand = CorpusConfig(paths=config.corpus.paths, weights=weights)
    build_shards(dataclasses.replace(config, corpus=by_hand, output=str(tmp_path / "by-hand")), no_progress)
    assert tars_of(config.output) == tars_of(tmp_path / "by-hand")
    once = CorpusConfig(paths=config.corpus.paths)
    build_shards(dataclasses.replace(config, corpus=once, output=str(tmp_path / "once")), no_progress)
    assert tars_of(config.output) != tars_of(tmp_path / "once")
    vocabulary = build_vocabulary(dataclasses.replace(config, tokenizer=str(tmp_path / "t.json")), no_progress)
    assert tuple(vocabulary.weights.values()) == weights


def test_kept_documents_are_evened_out_with_the_new_ones(config: PrepConfig, tmp_path: Path) -> None:
    build_shards(config, no_progress)
    large, small = config.corpus.paths
    first = dataclasses.replace(
        config,
        corpus=CorpusConfig(paths=(large,), temperature=2.0),
        keep_documents=True,
        output=str(tmp_path / "first"),
    )
    build_shards(first, no_progress)
    new = dataclasses.replace(
        first, corpus=CorpusConfig(paths=(small,), temperature=2.0), output=str(tmp_path / "more")
    )
    append(open_kept(first.output), new, no_progress)
    assert tars_of(new.output) == tars_of(config.output)
    repacked = dataclasses.replace(new, corpus=CorpusConfig(temperature=2.0), output=str(tmp_path / "again"))
    repack(open_kept(new.output), repacked, no_progress)
    assert tars_of(repacked.output) == tars_of(config.output)
    hotter = dataclasses.replace(new, corpus=CorpusConfig(paths=(small,), temperature=3.0), output=str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"append cannot change corpus\.temperature: .* was made with 2"):
        append(open_kept(first.output), hotter, no_progress)

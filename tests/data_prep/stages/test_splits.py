"""Which documents are the validation split, and folders that have none."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.config import CleaningConfig, CorpusConfig, DuplicatesConfig, PrepConfig, validation_fraction
from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import REJECTS, SPLITS
from data_prep.contract.shards import open_shards
from data_prep.corpus import partitions
from data_prep.corpus.draws import check_draws, document_draw, find_input_files, stratified_share
from data_prep.corpus.files import find_corpus_files
from data_prep.stages.build import build_shards
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.stages.test_stages import corpus_of, sentences


@pytest.fixture(scope="module")
def unsplit(tiny_config: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """Shards without a validation split, with their documents kept."""
    output = str(tmp_path_factory.mktemp("unsplit") / "shards")
    config = replace(tiny_config, output=output, validation_fraction=0.0, keep_documents=True)
    build_shards(config, no_progress)
    return config


def test_a_fraction_of_zero_leaves_every_document_to_training(unsplit: PrepConfig, tiny_shards: Path) -> None:
    manifest, before = open_shards(unsplit.output).manifest, open_shards(tiny_shards).manifest
    assert manifest["splits"]["validation"]["rows"] == manifest["splits"]["validation"]["shards"] == 0
    documents = {name: split["documents"] for name, split in before["splits"].items()}
    assert documents["validation"] > 0
    assert manifest["splits"]["train"]["documents"] == sum(documents.values())
    assert verify(unsplit.output).problems == ()
    assert build_shards(unsplit, no_progress).already_there


def test_folders_without_validation_rows_are_remade_as_others_are(unsplit: PrepConfig, tmp_path: Path) -> None:
    corpus_of(tmp_path / "more", sentences(20, 7), "more.jsonl")
    one = ["--num_workers", "1"]
    for command, *options in (
        ["remask", "--seed", "5"],
        ["repack", "--seq_length", "16"],
        ["append", "--corpus.paths", str(tmp_path / "more")],
    ):
        new = tmp_path / command
        assert main([command, unsplit.output, "--output", str(new), *options, *one]) == 0
        assert verify(new).problems == ()
        assert open_shards(new).split("validation").num_rows == 0
        assert open_shards(new).split("train").num_rows > 0


def test_reading_a_split_without_rows_says_how_to_get_one(
    unsplit: PrepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", unsplit.output, "--split", "validation"]) == 2
    assert "has no validation rows: prepare it with a validation_fraction above 0" in capsys.readouterr().err
    assert main(["inspect", unsplit.output]) == 0


def test_too_little_text_without_a_validation_split_asks_for_no_other_fraction(
    tiny_config: PrepConfig, tmp_path: Path
) -> None:
    corpus_of(tmp_path / "corpus", sentences(1, 3), "one.jsonl")
    corpus = CorpusConfig(paths=(str(tmp_path / "corpus"),))
    few = replace(tiny_config, corpus=corpus, output=str(tmp_path / "out"), validation_fraction=0.0)
    with pytest.raises(UserError, match=r"the train split gets \d+ rows .* or lower --seq_length$"):
        build_shards(few, no_progress)
    (tmp_path / "corpus" / "one.txt").write_text("one whole file")
    files = find_corpus_files(CorpusConfig(paths=(str(tmp_path / "corpus" / "one.txt"),)))
    check_draws([(file, 10) for file in files], few)  # one document, all of it training text


def own_validation(config: PrepConfig, place: Path, exact: bool = True) -> PrepConfig:
    """A corpus in two files, one of them named as the file of the validation split. Of its 64 documents two have the
    text of one there, one but for white space, and two the text of each other."""
    held_out, texts = sentences(20, 50), sentences(60, 51)
    corpus_of(place / "held-out", [*held_out, held_out[3]], "part0.jsonl")
    corpus_of(place / "corpus", [*texts[:30], held_out[3], held_out[4].replace(" ", "  ")], "part0.jsonl")
    corpus_of(place / "corpus", [*texts[30:], texts[0], held_out[3]], "part1.jsonl")
    return replace(
        config,
        corpus=CorpusConfig(paths=(str(place / "corpus"),)),
        validation_paths=(str(place / "held-out"),),
        validation_fraction=None,
        duplicates=DuplicatesConfig(exact=exact),
        output=str(place / "shards"),
        write_text=True,
        keep_documents=True,
    )


def texts_of(folder: str | Path) -> dict[str, list[str]]:
    """Split -> its texts, by ``write_text``."""
    rows = [row for path in sorted(Path(folder, "text").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {split: [row["text"] for row in rows if row["split"] == split] for split in SPLITS}


def rejects_of(folder: str | Path) -> list[tuple[str, str, str]]:
    """(id, reason, detail) of every reject."""
    with gzip.open(Path(folder) / REJECTS, "rt") as stream:
        return sorted((reject["id"], reject["reason"], reject["detail"]) for reject in map(json.loads, stream))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("partition", [4 << 20, 2_000])
def test_documents_of_validation_paths_are_the_validation_split_and_in_no_other(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool, partition: int
) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", partition)
    config = own_validation(tiny_config, tmp_path, exact)
    build_shards(config, no_progress)
    texts = texts_of(config.output)
    held_out, corpus = sentences(20, 50), sentences(60, 51)
    in_validation = [
        ("part0.jsonl:31", "in_validation", "of 2//part0.jsonl:4"),
        ("part0.jsonl:32", "in_validation", "of 2//part0.jsonl:5"),
        ("part1.jsonl:32", "in_validation", "of 2//part0.jsonl:4"),
    ]
    equal = [
        ("2//part0.jsonl:21", "duplicate", "of 2//part0.jsonl:4"),
        ("part1.jsonl:31", "duplicate", "of part0.jsonl:1"),
    ]
    assert texts["validation"] == [*held_out, *([] if exact else [held_out[3]])]
    assert texts["train"] == [*corpus, *([] if exact else [corpus[0]])]
    assert rejects_of(config.output) == sorted(in_validation + (equal if exact else []))
    sources = open_shards(config.output).manifest["statistics"]["sources"]
    assert [(source.get("validation", False), source["read"]) for source in sources] == [(True, 21), (False, 64)]
    assert verify(config.output).problems == ()
    assert build_shards(config, no_progress).already_there


def test_folders_with_their_own_validation_text_grow_and_keep_it(
    tiny_config: PrepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own_validation(tiny_config, tmp_path)
    build_shards(config, no_progress)
    corpus_of(tmp_path / "more", [*sentences(10, 60), sentences(20, 50)[7]], "part0.jsonl")
    one = ["--num_workers", "1"]
    more = ["append", config.output, "--corpus.paths", str(tmp_path / "more"), *one]
    assert main([*more, "--output", str(tmp_path / "grown")]) == 0
    assert texts_of(tmp_path / "grown")["validation"] == sentences(20, 50)
    assert texts_of(tmp_path / "grown")["train"] == [*sentences(60, 51), *sentences(10, 60)]
    assert ("3//part0.jsonl:11", "in_validation", "of 2//part0.jsonl:8") in rejects_of(tmp_path / "grown")
    assert (
        main(["repack", str(tmp_path / "grown"), "--output", str(tmp_path / "long"), "--seq_length", "64", *one]) == 0
    )
    assert open_shards(tmp_path / "long").split("validation").num_rows >= 16
    capsys.readouterr()
    refused = [*more, "--output", str(tmp_path / "other"), "--validation_paths", str(tmp_path / "more")]
    assert main(refused) == 2
    assert "append cannot change the validation split" in capsys.readouterr().err


def test_a_file_of_both_is_validation_text_alone(tiny_config: PrepConfig, tmp_path: Path) -> None:
    corpus_of(tmp_path, sentences(20, 50), "held-out.jsonl")
    corpus_of(tmp_path, sentences(20, 51), "rest.jsonl")
    config = replace(
        tiny_config, corpus=CorpusConfig(paths=str(tmp_path)), validation_paths=str(tmp_path / "held-out.jsonl")
    )
    found = [(file.name, file.validation, file.source) for file in find_input_files(config)]
    assert found == [("held-out.jsonl", True, 0), ("rest.jsonl", False, 1)]
    with pytest.raises(UserError, match=r"every file of corpus\.paths is one of validation_paths"):
        find_input_files(replace(config, validation_paths=str(tmp_path)))
    with pytest.raises(UserError, match="does not exist"):
        find_input_files(replace(config, validation_paths=str(tmp_path / "missing.jsonl")))


def test_a_fraction_beside_validation_paths_holds_more_out(tiny_config: PrepConfig, tmp_path: Path) -> None:
    config = replace(own_validation(tiny_config, tmp_path), validation_fraction=0.3, keep_documents=False)
    assert (validation_fraction(config), validation_fraction(replace(config, validation_fraction=None))) == (0.3, 0.0)
    assert validation_fraction(replace(config, validation_paths=(), validation_fraction=None)) == 0.05
    build_shards(config, no_progress)
    texts = texts_of(config.output)
    assert set(texts["validation"]) > set(sentences(20, 50))
    assert not set(texts["validation"]) & set(texts["train"])
    assert len(texts["validation"]) + len(texts["train"]) == 80


def test_too_little_validation_text_is_named(tiny_config: PrepConfig, tmp_path: Path) -> None:
    config = own_validation(tiny_config, tmp_path)
    (tmp_path / "held-out" / "part0.jsonl").write_text('{"text": "the quick brown fox"}\n')
    with pytest.raises(UserError, match=r"the validation split gets 1 rows .*: give more text in --validation_paths"):
        build_shards(config, no_progress)


@given(st.integers(0, 10_000), st.floats(1e-4, 0.9999))
def test_a_source_of_two_documents_or_more_is_in_both_splits(documents: int, fraction: float) -> None:
    share = stratified_share(documents, fraction)
    assert abs(share - documents * fraction) <= 1
    assert documents < 2 or 0 < share < documents
    assert share <= stratified_share(documents + 1, fraction)


def test_a_stratified_split_holds_the_share_of_each_source_out(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)
    sizes = {"large": 100, "small": 6, "two": 2, "one": 1}
    texts = {name: sentences(size, number) for number, (name, size) in enumerate(sizes.items())}
    texts["large"][50] = texts["large"][50] * 20  # comes in pieces
    for name, of_source in texts.items():
        corpus_of(tmp_path / name, [*of_source, of_source[0]], f"{name}.jsonl")
    config = replace(
        tiny_config,
        corpus=CorpusConfig(paths=tuple(str(tmp_path / name) for name in sizes)),
        cleaning=CleaningConfig(max_characters=2_000),
        validation_split="stratified",
        output=str(tmp_path / "shards"),
        write_text=True,
        keep_documents=True,
    )
    build_shards(config, no_progress)
    ids = ids_of(config.output)
    assert not ids["train"] & ids["validation"], "pieces of a document are in one split"
    held_out = {name: {x for x in ids["validation"] if x.startswith(name)} for name in sizes}
    assert {name: len(found) for name, found in held_out.items()} == {"large": 20, "small": 1, "two": 1, "one": 0}
    every = {x for x in ids["train"] | ids["validation"] if x.startswith("large")}
    assert held_out["large"] == set(sorted(every, key=document_draw)[:20])
    manifest = open_shards(config.output).manifest
    assert (
        manifest["splits"]["validation"]["documents"]
        == sum(map(len, texts_of(config.output).values())) - (manifest["splits"]["train"]["documents"])
    )
    # What is appended leaves the splits of what was there as they are.
    corpus_of(tmp_path / "more", sentences(10, 9), "more.jsonl")
    grown = tmp_path / "grown"
    append = ["append", config.output, "--output", str(grown), "--corpus.paths", str(tmp_path / "more")]
    assert main([*append, "--num_workers", "1"]) == 0
    assert {x for x in ids_of(grown)["validation"] if not x.startswith("more")} == ids["validation"]
    assert len(ids_of(grown)["validation"]) == 22 + 2


def ids_of(folder: str | Path) -> dict[str, set[str]]:
    """Split -> the ids of its documents, by ``write_text``; pieces have that of their document."""
    rows = [row for path in sorted(Path(folder, "text").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {split: {row["id"].partition("#")[0] for row in rows if row["split"] == split} for split in SPLITS}


def test_a_split_by_hash_is_proportional_up_to_chance() -> None:
    held_out = [sum(document_draw(f"{source}:{n}") < 0.05 for n in range(400)) for source in range(200)]
    mean, deviation = 400 * 0.05, (400 * 0.05 * 0.95) ** 0.5
    assert abs(np.mean(held_out) - mean) < 4 * deviation / 200**0.5
    assert 0.85 < np.std(held_out) / deviation < 1.15

"""Which documents are the validation split, and folders that have none."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.config import CorpusConfig, PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.corpus.draws import check_draws
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

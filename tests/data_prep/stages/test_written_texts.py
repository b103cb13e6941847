"""Documents back out: those that are in the rows, and no others."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.config import CorpusConfig, DuplicatesConfig, PrepConfig
from data_prep.contract.shards import open_shards
from data_prep.corpus import partitions
from data_prep.stages.build import build_shards
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.stages.test_stages import corpus_of, rejects_of, sentences


@pytest.fixture(scope="module")
def config(tiny_config: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """Three map tasks, with exact and near-duplicates between them, and texts that cleaning changes."""
    place = tmp_path_factory.mktemp("texts")
    for number in range(3):
        texts = [*sentences(40, number), *sentences(3, 0), sentences(1, 1)[0] + " more", "  e\u0301t\u00e9 \ud83d fox "]
        corpus_of(place / "corpus", texts, f"part{number}.jsonl")
    return replace(
        tiny_config,
        corpus=CorpusConfig(paths=(str(place / "corpus"),)),
        duplicates=DuplicatesConfig(near_threshold=0.8),
        write_text=True,
        keep_documents=True,
    )


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)


def texts_of(folder: str | Path) -> list[dict[str, str]]:
    return [row for path in sorted(Path(folder).glob("text/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_texts_are_those_of_the_rows(config: PrepConfig, tmp_path: Path) -> None:
    for name in ("one", "two"):
        workers = 1 if name == "one" else 2
        build_shards(replace(config, output=str(tmp_path / name), num_workers=workers), no_progress)
    found = texts_of(tmp_path / "one")
    manifest = open_shards(tmp_path / "one").manifest
    assert manifest["text"] == {"files": 3}
    for split, counts in manifest["splits"].items():
        assert sum(row["split"] == split for row in found) == counts["documents"]
    ids, rejected = {row["id"] for row in found}, {reject["id"] for reject in rejects_of(tmp_path / "one")}
    assert {reject["reason"] for reject in rejects_of(tmp_path / "one")} >= {"duplicate", "near_duplicate"}
    assert len(ids) + len(rejected) == manifest["statistics"]["read"] == len(ids | rejected)
    by_id = {row["id"]: row["text"] for row in found}
    assert by_id["part1.jsonl:7"] == sentences(40, 1)[6]
    assert not [text for text in by_id.values() if text != text.strip()]
    assert len(set(by_id.values())) == len(by_id)
    assert verify(tmp_path / "one").problems == ()
    for path in sorted((tmp_path / "one" / "text").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / "text" / path.name).read_bytes()


def test_repacked_documents_have_their_texts_and_remasked_rows_have_none(
    config: PrepConfig, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = replace(config, output=str(tmp_path / "parent"), num_workers=1)
    build_shards(parent, no_progress)
    options = ["--num_workers", "1", "--seed", "4"]
    assert main(["repack", parent.output, "--output", str(tmp_path / "new"), *options]) == 0
    assert texts_of(tmp_path / "new") == texts_of(parent.output)
    assert main(["repack", parent.output, "--output", str(tmp_path / "bare"), "--write_text", "false", *options]) == 0
    assert "text" not in open_shards(tmp_path / "bare").manifest
    assert main(["remask", parent.output, "--output", str(tmp_path / "masked"), *options]) == 0
    assert "text" not in open_shards(tmp_path / "masked").manifest
    without = replace(parent, output=str(tmp_path / "without"), write_text=False)
    build_shards(without, no_progress)
    capsys.readouterr()
    assert main(["repack", without.output, "--output", str(tmp_path / "no"), "--write_text", "true", *options]) == 2
    assert "was made without --write_text true" in capsys.readouterr().err
    assert bytes_of_tars(without.output) == bytes_of_tars(parent.output)


def bytes_of_tars(folder: str | Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))]

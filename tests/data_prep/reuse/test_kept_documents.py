"""Shards out of documents that were kept: those that the whole corpus would have made."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from data_prep.__main__ import main
from data_prep.config import CorpusConfig, MaskConfig, PackingConfig, PrepConfig
from data_prep.contract.manifest import compute_root_hash, manifest_bytes
from data_prep.contract.shards import open_shards
from data_prep.corpus import partitions
from data_prep.stages.build import build_shards
from data_prep.stages.records import sizes_and_hashes
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.stages.test_stages import corpus_of, sentences


@pytest.fixture(scope="module")
def parent(tiny_config: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """Shards of three map tasks that have kept their documents."""
    place = tmp_path_factory.mktemp("kept")
    for number in range(3):
        corpus_of(place / "corpus", [*sentences(60, number), sentences(1, 0)[0]], f"part{number}.jsonl")
    config = replace(
        tiny_config,
        corpus=CorpusConfig(paths=(str(place / "corpus"),)),
        output=str(place / "shards"),
        keep_documents=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)
        build_shards(config, no_progress)
    return config


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 5_000)


def test_every_file_has_the_permissions_of_a_new_one(parent: PrepConfig, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("")
    modes = {path.stat().st_mode for path in Path(parent.output).rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def tars_of(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--seq_length", "64"], {"seq_length": 64}),
        (["--packing.mode", "isolated", "--seed", "3"], {"packing": PackingConfig(mode="isolated"), "seed": 3}),
        (
            ["--mask.probability", "0.3", "--mask.unit", "word", "--mask.variants", "2"],
            {"mask": MaskConfig(probability=0.3, unit="word", variants=2)},
        ),
    ],
)
def test_repacked_shards_are_those_of_the_corpus(
    parent: PrepConfig, tmp_path: Path, options: list[str], changes: dict
) -> None:
    direct = replace(parent, output=str(tmp_path / "direct"), keep_documents=False, **changes)
    build_shards(direct, no_progress)
    new = tmp_path / "repacked"
    assert main(["repack", parent.output, "--output", str(new), "--num_workers", "1", *options]) == 0
    assert tars_of(new) == tars_of(direct.output)
    assert verify(new).problems == ()
    manifest = open_shards(new).manifest
    assert manifest["parent"] == {"root_hash": open_shards(parent.output).root_hash, "made_by": "repack"}
    assert manifest["statistics"]["rejects"] == open_shards(direct.output).manifest["statistics"]["rejects"]
    assert main(["repack", parent.output, "--output", str(new), "--num_workers", "1", *options]) == 0, "it is complete"


def test_appended_shards_are_those_of_both_corpora(parent: PrepConfig, tmp_path: Path) -> None:
    fresh = [*sentences(40, 7), *sentences(5, 1)]  # the last five are in the parent
    corpus_of(tmp_path / "more", fresh, "part0.jsonl")  # named as one of the parent's files
    new = tmp_path / "appended"
    more = ["--corpus.paths", f"[{tmp_path / 'more'}]", "--num_workers", "1"]
    assert main(["append", parent.output, "--output", str(new), *more]) == 0
    both = replace(parent, corpus=CorpusConfig(paths=(*parent.corpus.paths, str(tmp_path / "more"))))
    direct = replace(both, output=str(tmp_path / "direct"), keep_documents=False)
    assert build_shards(direct, no_progress).rejects == {"duplicate": 3 + 5}
    assert tars_of(new) == tars_of(direct.output)
    assert verify(new).problems == ()
    manifest = open_shards(new).manifest
    assert manifest["parent"]["made_by"] == "append"
    assert [line["name"] for line in map(json.loads, (new / "inputs.jsonl").open())] == [
        "part0.jsonl", "part1.jsonl", "part2.jsonl", "2//part0.jsonl",
    ]  # fmt: skip
    # Again, onto what was appended to: the documents of both are there.
    again = tmp_path / "again"
    corpus_of(tmp_path / "third", sentences(10, 8), "third.jsonl")
    third = ["--corpus.paths", f"[{tmp_path / 'third'}]", "--num_workers", "1"]
    assert main(["append", str(new), "--output", str(again), *third]) == 0
    assert open_shards(again).manifest["statistics"]["read"] == manifest["statistics"]["read"] + 10
    sources = open_shards(again).manifest["statistics"]["sources"]
    assert (
        sources[:2] == manifest["statistics"]["sources"] == open_shards(direct.output).manifest["statistics"]["sources"]
    )
    assert [source["files"] for source in sources] == [3, 1, 1]
    assert sources[2]["read"] == sources[2]["documents"] == 10


def test_documents_kept_before_sources_were_counted(parent: PrepConfig, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(parent.output, old)
    for folder in (old / "documents").glob("0*"):
        columns = load_file(folder / "documents.safetensors")
        del columns["source"]
        save_file(columns, folder / "documents.safetensors")
        record = json.loads((folder / "record.json").read_text())
        record |= record.pop("sources")["0"]
        record.setdefault("rejects", {})
        record["files"] = sizes_and_hashes(folder)
        del record["files"]["record.json"]
        (folder / "record.json").write_text(json.dumps(record))
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["statistics"]["sources"]
    manifest["root_hash"] = compute_root_hash(manifest)
    (old / "manifest.json").write_bytes(manifest_bytes(manifest))
    corpus_of(tmp_path / "more", sentences(20, 7), "more.jsonl")
    more = ["--corpus.paths", f"[{tmp_path / 'more'}]", "--num_workers", "1"]
    assert main(["append", str(old), "--output", str(tmp_path / "new"), *more]) == 0
    statistics = open_shards(tmp_path / "new").manifest["statistics"]
    assert statistics["sources"][0] == open_shards(parent.output).manifest["statistics"]["sources"][0]
    assert [source["files"] for source in statistics["sources"]] == [3, 1]
    assert statistics["read"] == sum(source["read"] for source in statistics["sources"])


def test_too_few_rows_of_documents_that_cannot_change_are_mended_by_shorter_ones(
    parent: PrepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["repack", parent.output, "--output", str(tmp_path / "new"), "--num_workers", "1", "--seq_length"]
    assert main([*options, "1024"]) == 2
    assert capsys.readouterr().err.endswith("needs 16: lower --seq_length\n")
    assert main([*options, "64"]) == 0


def test_what_cannot_be_is_one_line(
    parent: PrepConfig, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*argv: str) -> str:
        assert main([*argv, "--output", str(tmp_path / "new")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "keep_documents" in error("repack", str(tiny_shards), "--seq_length", "64")
    assert "repack cannot change cleaning.min_characters" in error(
        "repack", parent.output, "--cleaning.min_characters", "9"
    )
    assert "append cannot change seq_length" in error("append", parent.output, "--seq_length", "64")
    assert "needs the shard folder first" in error("repack", "--seq_length", "64")
    tokens = Path(parent.output) / "documents/000001/tokens.bin"
    whole = tokens.read_bytes()
    try:
        tokens.write_bytes(bytes(len(whole)))
        assert "000001 is damaged" in error("repack", parent.output, "--seed", "5", "--num_workers", "1")
    finally:
        tokens.write_bytes(whole)
    assert not (tmp_path / "new").exists()

"""Text that was decoded wrongly before it got here."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.config import CleaningConfig, CorpusConfig, PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.corpus import mojibake
from data_prep.corpus.documents import Document, whole_document
from data_prep.stages.build import build_shards
from tests.data_prep.conftest import NoProgress
from tests.data_prep.stages.test_stages import corpus_of, sentences

REPAIRING = CleaningConfig(repair_mojibake=True)
FRENCH = "Le café était fermé, déjà, à l’heure où naît l’été."
PLAIN = ["naïve façade", "Grüße aus Köln", "Привет, мир", "これは文です", "x² ≈ 4 €", "ﬁne “quotes” …", "ÀÉÎ ÃO"]


def misread(text: str, encoding: str) -> str:
    """UTF-8 that was taken for something else."""
    return text.encode().decode(encoding)


def test_lines_that_were_misread_are_put_right_and_others_left() -> None:
    pytest.importorskip("ftfy")
    text = f"plain ascii\n{misread(FRENCH, 'cp1252')}\n{misread('Привет, мир', 'cp1252')}\n" + "\n".join(PLAIN)
    (found,) = whole_document("a", text, REPAIRING)
    assert isinstance(found, Document)
    assert found.repaired
    assert found.text == "\n".join(["plain ascii", FRENCH, "Привет, мир", *PLAIN])
    (left,) = whole_document("a", "\n".join(PLAIN), REPAIRING)
    assert left == next(whole_document("a", "\n".join(PLAIN), CleaningConfig()))
    (unasked,) = whole_document("a", misread(FRENCH, "cp1252"), CleaningConfig())
    assert isinstance(unasked, Document)
    assert unasked.text == misread(FRENCH, "cp1252")


def test_pieces_of_a_long_document_are_repaired_too() -> None:
    pytest.importorskip("ftfy")
    text = " ".join([misread(FRENCH, "cp1252")] * 60)
    pieces = list(whole_document("a", text, replace(REPAIRING, max_characters=1_000)))
    assert len(pieces) > 2
    assert all(isinstance(piece, Document) and piece.repaired and "Ã©" not in piece.text for piece in pieces)


def test_repaired_documents_are_counted(tiny_config: PrepConfig, tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    corpus_of(tmp_path / "corpus", [*sentences(40, 3), *(f"{misread(FRENCH, 'cp1252')} {n}" for n in range(3))])
    config = replace(
        tiny_config,
        corpus=CorpusConfig(paths=str(tmp_path / "corpus")),
        cleaning=REPAIRING,
        output=str(tmp_path / "shards"),
    )
    progress = NoProgress()
    build_shards(config, progress)
    manifest = open_shards(config.output).manifest
    assert "3 documents repaired of mojibake" in progress.notes
    assert manifest["statistics"]["repaired"] == manifest["statistics"]["sources"][0]["repaired"] == 3
    assert "ftfy" in manifest["libraries"]
    assert "<p>3 documents repaired of mojibake.</p>" in (tmp_path / "shards" / "report.html").read_text()


def test_the_missing_library_is_named(tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    mojibake.require_ftfy.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"needs the library ftfy: pip install 'narrowbert\[mojibake\]'"):
        build_shards(replace(tiny_config, cleaning=REPAIRING, output=str(tmp_path / "out")), NoProgress())

"""A document filter is one class and one line in the registry; everything else follows."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Self

import pytest

from data_prep.config import PrepConfig
from data_prep.contract.shards import open_shards
from data_prep.filters import registry
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal
from data_prep.stages.build import build_shards
from data_prep.verification.folder import verify
from tests.data_prep.conftest import NoProgress


class FewWords(DocumentFilter):
    """Drops documents of fewer than a hundred words, unless no evaluation n-gram could be that long."""

    reason = "few_words"
    config_keys = ("duplicates.evaluation_ngram",)

    def __init__(self, least: int) -> None:
        self.least = least

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        return cls(100) if config.duplicates.evaluation_ngram < 100 else None

    def check(self, text: AnalysedText) -> Refusal | None:
        words = len(text.text.split())
        return Refusal(detail=f"{words} words", score=words) if words < self.least else None

    def counts(self) -> dict[str, int]:
        return {"least_words": self.least}

    @classmethod
    def note(cls, _config, record, /) -> str | None:
        return f"at least {record['least_words']} words" if "least_words" in record else None


def test_a_registered_filter_is_applied_counted_and_reported(
    tiny_config: PrepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DOCUMENT_FILTERS", [*registry.DOCUMENT_FILTERS, FewWords])
    progress = NoProgress()
    output = tmp_path / "shards"
    built = build_shards(dataclasses.replace(tiny_config, output=str(output)), progress)
    with gzip.open(output / "rejects.jsonl.gz", "rt") as stream:
        rejects = [json.loads(line) for line in stream]
    assert rejects
    assert {reject["reason"] for reject in rejects} == {"few_words"}
    assert all(len(reject["sample"].split()) < 100 for reject in rejects)
    assert built.rejects == {"few_words": len(rejects)}
    statistics = open_shards(output).manifest["statistics"]
    assert statistics["rejects"] == {"few_words": len(rejects)}
    assert statistics["documents"]["documents"] + len(rejects) == statistics["read"] == 60
    page = (output / "report.html").read_text()
    assert "few words" in page
    assert rejects[0]["detail"] in page
    assert progress.notes == ["at least 100 words"]
    assert verify(output).problems == ()


def test_a_filter_that_the_configuration_leaves_off_does_nothing(
    tiny_config: PrepConfig, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DOCUMENT_FILTERS", [*registry.DOCUMENT_FILTERS, FewWords])
    duplicates = dataclasses.replace(tiny_config.duplicates, evaluation_ngram=100)
    progress = NoProgress()
    config = dataclasses.replace(tiny_config, output=str(tmp_path / "shards"), duplicates=duplicates)
    assert build_shards(config, progress).rejects == {}
    assert progress.notes == []
    for name in ("train-00000.tar", "validation-00000.tar"):
        assert (tmp_path / "shards" / name).read_bytes() == (tiny_shards / name).read_bytes()


@pytest.mark.parametrize("document_filter", registry.DOCUMENT_FILTERS)
def test_reasons_are_words_and_keys_exist(document_filter: type[DocumentFilter]) -> None:
    assert document_filter.reason.isidentifier()
    assert document_filter.config_keys
    for key in document_filter.config_keys:
        value = PrepConfig(output="")
        for name in key.split("."):
            value = getattr(value, name)
    assert [found.reason for found in registry.DOCUMENT_FILTERS].count(document_filter.reason) == 1

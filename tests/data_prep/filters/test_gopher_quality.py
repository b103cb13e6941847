"""Gopher's quality rules: each at its limit, with the verdicts of the rules as published."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import PrepConfig, check_config
from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.corpus.documents import Document, Reject
from data_prep.filter_config import FiltersConfig, GopherQualityConfig
from data_prep.filters.analysis import AnalysedText, count_sentences
from data_prep.filters.registry import filtered, open_filters
from data_prep.filters.word_ngrams import words_of
from data_prep.stages.build import build_shards
from tests.data_prep.conftest import no_progress

SENTENCE = "the house of stone and wood stood near that river. "
"""Ten words with a letter, and a stop; 40 characters of words."""


def verdict(text: str, **options: object) -> tuple[str, float | None] | None:
    """(reason, score) of the reject, or None."""
    quality = GopherQualityConfig(enabled=True, **options)  # type: ignore[arg-type]
    config = PrepConfig(output="", filters=FiltersConfig(gopher_quality=quality))
    found = filtered(Document(id="x", text=text), open_filters(config), 1)
    return (found.reason, found.score) if isinstance(found, Reject) else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SENTENCE * 5, None),
        (SENTENCE * 4 + "... , ; !", ("gopher_quality.few_words", 40)),
        (SENTENCE * 10_001, ("gopher_quality.many_words", 100_010)),
        ("it is of an in " * 20, ("gopher_quality.short_words", 2.0)),
        ("incomprehensibilities " * 60 + "the of", ("gopher_quality.long_words", pytest.approx(1265 / 62))),
        (SENTENCE * 5 + "# " * 6, None),  # 6 of 61 words
        (SENTENCE * 5 + "# " * 7, ("gopher_quality.hashes", 7 / 62)),
        (SENTENCE * 5 + "a … " * 8, ("gopher_quality.ellipses", 8 / 71)),
        ("\n".join(["- " + SENTENCE] * 9 + [SENTENCE]), None),
        ("\n".join(["• " + SENTENCE] * 10), ("gopher_quality.bullets", 1.0)),
        ("\n".join([SENTENCE + "..."] * 3 + [SENTENCE] * 7), None),
        ("\n".join([SENTENCE + "..."] * 4 + [SENTENCE] * 6), ("gopher_quality.ellipsis_lines", 0.4)),
        (SENTENCE * 5 + "17000 " * 8, ("gopher_quality.few_letters", 50 / 63)),
        ("the house stood there near some other river " * 8, ("gopher_quality.few_stop_words", 1)),
    ],
)
def test_each_rule_at_its_limit(text: str, expected: tuple[str, float] | None) -> None:
    assert verdict(text) == expected


def test_a_rule_that_is_null_is_off_and_limits_are_followed() -> None:
    short = SENTENCE * 4
    assert verdict(short) == ("gopher_quality.few_words", 40)
    assert verdict(short, min_words=None) is None
    assert verdict(short, min_words=40) is None
    assert verdict(SENTENCE * 5, min_stop_words=1, stop_words=("und",)) == ("gopher_quality.few_stop_words", 0)


def test_words_and_sentences() -> None:
    text = "Don't pay 1,000.50 -- it's well-known... (is it?) 中文 हिन्दी x_y"
    words = AnalysedText(Document(id="", text=text)).words
    assert words[:9] == ["Don", "'t", "pay", "1,000.50", "--", "it", "'s", "well", "-"]
    assert words[9:15] == ["known", "...", "(", "is", "it", "?"]
    assert [count_sentences(line) for line in ("One.", "One. Two", 'He said "no." Go! 3.5 m', "", "  ", "一。")] == [
        1, 2, 3, 0, 0, 1,
    ]  # fmt: skip


@settings(deadline=None)
@given(st.text(st.sampled_from("ab人ア กข\u0e31\u0e49क\u093e\u093c\u0301é1 \n")))
def test_words_of_letters_are_those_of_ngrams_in_every_script(text: str) -> None:
    assert AnalysedText(Document(id="", text=text)).words == words_of(text)


def test_marks_belong_to_words_and_each_letter_of_a_script_without_blanks_is_one() -> None:
    words = AnalysedText(Document(id="", text="हिन्दी, 1,000.5 don't -- می\u200cخواهم 你好。น้ำใจ")).words
    assert words[:7] == ["हिन्दी", ",", "1,000.5", "don", "'t", "--", "می\u200cخواهم"]
    assert words[7:] == ["你", "好", "。", "น้", "ำ", "ใ", "จ"]
    long = AnalysedText(Document(id="", text="क्" * 300_000)).words
    assert list(map(len, long)) == [600_000]


def test_rules_take_chinese_and_hindi_as_they_take_english() -> None:
    assert verdict("मैं हिन्दी पढ़ता हूँ। " * 20, min_stop_words=None) is None
    chinese = "我们今天去图书馆看书。" * 8
    assert verdict(chinese, min_stop_words=None, min_mean_word_length=None) is None
    assert verdict(chinese[:44], min_stop_words=None, min_mean_word_length=None) == ("gopher_quality.few_words", 40)


def test_documents_in_are_documents_kept_and_rejects(tiny_config: PrepConfig, tmp_path: Path) -> None:
    quality = GopherQualityConfig(enabled=True, min_words=200, min_stop_words=None)
    config = dataclasses.replace(
        tiny_config, output=str(tmp_path / "shards"), filters=FiltersConfig(gopher_quality=quality)
    )
    built = build_shards(config, no_progress)
    with gzip.open(tmp_path / "shards/rejects.jsonl.gz", "rt") as stream:
        rejects = [json.loads(line) for line in stream]
    manifest = open_shards(tmp_path / "shards").manifest
    assert 0 < len(rejects) < 60
    assert built.rejects == {"gopher_quality.few_words": len(rejects)}
    assert len(rejects) + manifest["statistics"]["documents"]["documents"] == manifest["statistics"]["read"] == 60
    assert all(reject["score"] < 200 and f"{reject['score']:g}, filters." in reject["detail"] for reject in rejects)
    assert manifest["configuration"]["filters"]["gopher_quality"]["min_words"] == 200


def test_filters_that_are_off_are_no_part_of_the_configuration(tiny_shards: Path) -> None:
    assert "filters" not in open_shards(tiny_shards).manifest["configuration"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_words": 60, "max_words": 50}, "max_words 50"),
        ({"min_stop_words": 9}, "9 of 8 stop_words"),
        ({"max_symbol_ratio": float("nan")}, "max_symbol_ratio is nan"),
    ],
)
def test_limits_that_keep_nothing_are_refused(options: dict[str, float], message: str) -> None:
    quality = GopherQualityConfig(enabled=True, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        check_config(PrepConfig(output="shards/x", filters=FiltersConfig(gopher_quality=quality)))

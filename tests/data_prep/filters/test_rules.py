"""The rules of C4, FineWeb, Gopher's repetition and others: stored verdicts of small cases, each at its limit."""

import dataclasses
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import PrepConfig, check_config
from data_prep.contract.command_line import UserError, read_config
from data_prep.contract.shards import open_shards
from data_prep.corpus.documents import Document, Reject
from data_prep.filter_config import LONG_NGRAMS, SHORT_NGRAMS, FiltersConfig, GopherRepetitionConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.registry import filtered, open_filters
from data_prep.filters.rules import gopher_repetition
from data_prep.filters.rules.gopher_repetition import GopherRepetition
from data_prep.stages.build import build_shards
from tests.data_prep.conftest import no_progress

ROOT = Path(__file__).parents[3]
PROSE = "The stone house near that river was old, and nobody had lived there for many years.\n"
OTHERS = [
    "A grey cat slept on its roof each summer night.",
    "We found letters from a sailor under one loose board.",
    "Nobody in town remembers who built this place!",
    "Would you have gone inside after dark?",
    "My brother did, with only a candle in his hand.",
    "He came back pale and never spoke about it again.",
]


def configured(section: str, **options: Any) -> PrepConfig:
    """A configuration with one section of the filters on."""
    found = FiltersConfig()
    changed = dataclasses.replace(getattr(found, section), enabled=True, **options)
    return PrepConfig(output="shards/x", filters=dataclasses.replace(found, **{section: changed}))


def judged(text: str, section: str, **options: Any) -> Document | Reject:
    """What one section makes of a text."""
    return filtered(Document(id="x", text=text), open_filters(configured(section, **options)), 1)


def reason(text: str, section: str, **options: Any) -> str | None:
    """Rule of the reject, or None."""
    found = judged(text, section, **options)
    return found.reason.removeprefix(section + ".") if isinstance(found, Reject) else None


def left(text: str, section: str, **options: Any) -> str:
    """The text as the section leaves it."""
    found = judged(text, section, **options)
    assert isinstance(found, Document), found
    return found.text


def test_c4_keeps_lines_that_are_sentences() -> None:
    lines = [
        *OTHERS,
        "Home | About | Contact",
        "Two words.",
        "We use cookies to improve this site.",
        "To be continued...",
    ]
    lines += [
        "Please enable JavaScript to see this page.",
        "It grew from 1900[12] on[edit] and on.",
        "x" * 1001 + " is long.",
    ]
    assert left("\n".join(lines), "c4").split("\n") == [*OTHERS, "It grew from 1900 on and on."]
    assert left("\n".join(OTHERS), "c4") == "\n".join(OTHERS)
    assert "Home | About | Contact" in left("\n".join(lines), "c4", terminal_punctuation=False)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (OTHERS[:5], None),
        (OTHERS[:4], "few_sentences"),
        (["One two three. Four five six. Seven eight. Nine ten eleven. Twelve."], None),
        ([*OTHERS, "Lorem Ipsum dolor sit amet."], "lorem_ipsum"),
        ([*OTHERS, "function() { return one; }."], "curly_bracket"),
        ([*OTHERS, "{"], None),  # the line goes before it is looked at
    ],
)
def test_c4_drops_documents(lines: list[str], expected: str | None) -> None:
    assert reason("\n".join(lines), "c4") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(OTHERS), None),
        ("\n".join(line.rstrip(".!?") for line in OTHERS), "line_punctuation"),
        ("\n".join([*OTHERS, *(f"{n} bottles of beer" for n in range(12))]), None),  # 12 of 18 are short
        ("\n".join([*OTHERS, *(f"{n} bottles of beer" for n in range(13))]), "short_lines"),
        ("\n".join([*OTHERS, OTHERS[0]]), "repeated_lines"),
        ("\n\n\n\n\n".join(["No, never again.", *OTHERS[:5]]), "lists"),
    ],
)
def test_fineweb(text: str, expected: str | None) -> None:
    assert reason(text, "fineweb") == expected
    if expected == "line_punctuation":
        assert reason(text, "fineweb", min_line_punctuation=None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n".join(OTHERS), None),
        ("\n\n".join([*OTHERS[:2], OTHERS[0]]), "paragraphs"),
        ("\n\n".join([*OTHERS, PROSE.strip() * 3, PROSE.strip() * 3]), "paragraph_characters"),
        ("\n".join(["a line", *OTHERS[:5], *["a line"] * 3]), "lines"),
        ("\n".join([*OTHERS, PROSE.strip() * 3, PROSE.strip() * 3]), "line_characters"),
        ("one two, " * 30 + OTHERS[0], "top_2grams"),
        (" ".join(f"{word} so it is" for word in " ".join(OTHERS[:4]).split()), "top_2grams"),
        (" ".join([PROSE.strip(), *OTHERS, PROSE.strip()]), "repeated_6grams"),
        (" ".join([PROSE.strip(), *OTHERS[:4], PROSE.strip()]), "repeated_5grams"),
    ],
)
def test_gopher_repetition(text: str, expected: str | None) -> None:
    assert reason(text, "gopher_repetition") == expected


words = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggg", "hh"]), min_size=1, max_size=60)


@given(found=words, repeats=st.integers(0, 4), tops=st.floats(0, 1), longs=st.floats(0, 1))
def test_repetition_is_what_a_plain_count_says(found: list[str], repeats: int, tops: float, longs: float) -> None:
    """The bounds that spare most texts a count never change a verdict."""
    found = [*found, *(found[:12] * repeats), *(str(n) for n in range(len(found)))]
    text, config = (
        " ".join(found),
        GopherRepetitionConfig(enabled=True, top_ngrams=(tops, tops * 0.9, tops * 0.8), repeated_ngrams=(longs,) * 6),
    )
    refused = GopherRepetition(config).check(AnalysedText(Document(id="x", text=text)))
    assert (refused.rule if refused else None) == _plain(found, text, config)


def _plain(found: list[str], text: str, config: GopherRepetitionConfig) -> str | None:
    for n, limit in zip(SHORT_NGRAMS, config.top_ngrams or (), strict=True):
        grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
        if grams:
            gram, count = Counter(grams).most_common(1)[0]
            if len(gram) * count / len(text) > limit:
                return f"top_{n}grams"
    for n, limit in zip(LONG_NGRAMS, config.repeated_ngrams or (), strict=True):
        seen, characters, i = set(), 0, 0
        while i < len(found) - n + 1:
            gram = tuple(found[i : i + n])
            if gram in seen:
                characters, i = characters + sum(map(len, gram)), i + n
            else:
                seen.add(gram)
                i += 1
        if characters / len(text) > limit:
            return f"repeated_{n}grams"
    return None


def test_what_is_known_of_words_survives_a_full_table(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.filters import word_facts

    text = AnalysedText(Document(id="x", text=" ".join(f"w{n} 7 ," for n in range(5000))))
    facts = word_facts.WordFacts()
    monkeypatch.setattr(word_facts, "MOST_WORDS", 10)
    for _ in range(3):
        found = facts.of(text.words)
        assert found["lengths"].tolist() == [len(word) for word in text.words]
        assert found["spoken"].tolist() == [True, True, False] * 5000
        assert found["alphabetic"].tolist() == [True, False, False] * 5000
        assert len(set(found["hashes"].tolist())) == 5002


def test_ratios() -> None:
    german = "Der Hund und die Katze sind nicht im Haus, aber der Hund ist in dem Garten."
    options: dict[str, Any] = {"stop_words": ("der", "und", "die", "im"), "min_stop_words": 0.3}
    assert reason(german, "ratios", **options) is None  # 5 of 16
    assert reason(german, "ratios", **options | {"min_stop_words": 0.32}) == "stop_words"
    assert reason("a , b , c ; d", "ratios", max_punctuation=0.4) == "punctuation"
    assert reason("BUY IT NOW my friend", "ratios", max_upper_case=0.5) == "upper_case"
    assert reason("I am here", "ratios", max_upper_case=0.1) is None


def test_repeated_lines_are_left_once() -> None:
    menu = "Home | Products | Contact us"
    assert left(f"{menu}\nSome text.\n {menu.upper()} \n\nOne.\n\nOne.", "repeated_lines") == (
        f"{menu}\nSome text.\n\nOne.\n\nOne."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jane.doe+x@mail.example.org, or (bob@x.io).", "Mail email@example.com, or (email@example.com)."),
        ("not@mail and a@b are none", "not@mail and a@b are none"),
        ("from 8.8.8.8 and 10.0.0.1, version 1.2.3.4.5", "from 192.0.2.1 and 10.0.0.1, version 1.2.3.4.5"),
        ("call +49 (30) 1234567 or 0049 30 1234567.", "call +1 555 0100 or +1 555 0100."),
        ("call (212) 555-0199 or 212-555-0199", "call +1 555 0100 or +1 555 0100"),
        ("in 1999-2004, 3.14159265 and ISBN 978-3-16-148410-0", "in 1999-2004, 3.14159265 and ISBN 978-3-16-148410-0"),
    ],
)
def test_pii_is_replaced(text: str, expected: str) -> None:
    assert left(text, "pii") == expected
    assert left(text, "pii", email=None, ip=None, phone=None) == text


def test_language() -> None:
    pytest.importorskip("fasttext")
    german = "Das ist ein kleiner Satz, den man ohne Mühe als Deutsch erkennt."
    found = judged(german, "language", languages=("de", "fr"))
    assert isinstance(found, Document)
    assert found.language == "de"
    refused = judged(german, "language", languages=("en",))
    assert isinstance(refused, Reject)
    assert (refused.reason, refused.language) == ("language", "de")
    assert refused.score is not None
    assert refused.score > 0.9
    assert reason("aber 17 @@ xx", "language", languages=("de",), min_score=1.0) is not None
    with pytest.raises(UserError, match="'english' is no code"):
        judged(german, "language", languages=("english",))


def test_own_python_is_called_and_its_hash_recorded(tiny_config: PrepConfig, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def check(text):\n    return (False, 'is long') if len(text) > 1500 else text.upper()\n")
    filters = configured("python", path=str(own)).filters
    config = dataclasses.replace(tiny_config, output=str(tmp_path / "a"), filters=filters, write_text=True)
    built = build_shards(config, no_progress)
    with gzip.open(tmp_path / "a/rejects.jsonl.gz", "rt") as stream:
        rejects = [json.loads(line) for line in stream]
    assert built.rejects == {"python": len(rejects)}
    assert 0 < len(rejects) < 60
    assert {reject["detail"] for reject in rejects} == {"is long"}
    from pyarrow.parquet import read_table

    texts = read_table(tmp_path / "a/text")["text"].to_pylist()
    assert len(texts) + len(rejects) == 60
    assert all(text == text.upper() for text in texts)
    recorded = open_shards(tmp_path / "a").manifest["configuration"]["filters"]["python"]
    assert set(recorded) == {"enabled", "path_sha256"}
    assert build_shards(config, no_progress).already_there
    own.write_text(own.read_text() + "# changed\n")
    with pytest.raises(UserError, match="another configuration"):
        build_shards(config, no_progress)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def check(text):\n    return 1 / 0\n", "check failed at line 2 on the document x: ZeroDivisionError"),
        ("def check(text):\n    return 7\n", "check gave int"),
        ("check = 3\n", "has no function check"),
        ("def check(:\n", "fails: SyntaxError"),
    ],
)
def test_mistakes_in_own_python_are_told_in_one_line(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        judged("text", "python", path=str(tmp_path / "own.py"))
    assert "\n" not in str(raised.value)


def test_a_text_that_a_filter_empties_is_a_reject() -> None:
    found = judged("a@b.org", "pii", email="")
    assert isinstance(found, Reject)
    assert found.reason == "pii.little_left"


def test_the_report_counts_by_language_and_source(tiny_config: PrepConfig, tmp_path: Path) -> None:
    pytest.importorskip("fasttext")
    quality = configured("gopher_quality", min_words=200, min_stop_words=None).filters.gopher_quality
    filters = dataclasses.replace(configured("language").filters, gopher_quality=quality)
    build_shards(dataclasses.replace(tiny_config, output=str(tmp_path / "a"), filters=filters), no_progress)
    statistics = open_shards(tmp_path / "a").manifest["statistics"]
    languages = statistics["sources"][0]["languages"]
    assert sum(found["read"] for found in languages.values()) == statistics["read"] == 60
    taken = Counter[str]()
    for found in languages.values():
        taken.update(found["rejects"])
    assert dict(taken) == statistics["rejects"] != {}
    assert statistics["documents"]["documents"] + sum(taken.values()) == 60
    for key in ("words", "tokens", "unknown_tokens"):  # no duplicate is among them
        assert sum(found.get(key, 0) for found in languages.values()) == statistics["documents"][key]
    report = (tmp_path / "a/report.html").read_text().split("<h2>By language</h2>")[1].split("</table>")[0]
    largest = max(languages.values(), key=lambda found: found["read"])
    assert f"{largest['tokens'] / largest['words']:.2f}" in report


@pytest.mark.parametrize("preset", sorted((ROOT / "configs/prep/filters").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_go_behind_another(preset: Path) -> None:
    base = ROOT / "configs/prep/base.yaml"
    config = read_config(PrepConfig, ["--config", str(base), "--config", str(preset)], "shards", "")
    check_config(config)
    assert config.seq_length == 512
    if config.filters.language.enabled:
        pytest.importorskip("fasttext")
    assert len(open_filters(config)) >= 2


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("gopher_repetition", {"top_ngrams": (0.2,)}, "top_ngrams has 1 numbers"),
        ("ratios", {"min_stop_words": 0.1}, "needs filters.ratios.stop_words"),
        ("python", {}, "needs filters.python.path"),
        ("language", {"min_score": 2}, "min_score is 2"),
        ("fineweb", {"max_short_lines": -1}, "max_short_lines is -1"),
    ],
)
def test_mistakes_are_told(section: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(configured(section, **options))
    assert gopher_repetition.repeated(["a", "b", "a", "a"]) == (2, 2)

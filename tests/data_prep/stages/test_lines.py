"""Lines that earlier documents of the corpus have: those are taken out that a plain loop takes out."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import ClusterConfig, PrepJobsConfig
from cluster.prep import jobs_to_send
from data_prep.__main__ import main
from data_prep.config import CleaningConfig, CorpusConfig, DuplicatesConfig, PrepConfig
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.shards import open_shards
from data_prep.corpus import partitions
from data_prep.filter_config import C4Config, FiltersConfig, RepeatedLinesConfig
from data_prep.stages.build import build_shards, count_tasks, run_task
from data_prep.stages.records import ALL_STAGES, STAGES, stages_of
from data_prep.stages.texts import hash_ranges, lines
from data_prep.stages.vocabulary import build_vocabulary
from data_prep.stages.work_plan import pinned_configuration
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress
from tests.data_prep.reuse.test_kept_documents import tars_of
from tests.data_prep.stages.test_faults import cut_short, killed_at, zeroed
from tests.data_prep.stages.test_stages import rejects_of, sentences
from tests.data_prep.stages.test_written_texts import texts_of

FOOTER = "Read our terms of use and privacy notice"
MENU = "Home and Products and Contact us"
ACROSS = FiltersConfig(repeated_lines=RepeatedLinesConfig(enabled=True, across_documents=True))

Text = list[str]
"""The lines of a document."""


def corpus(folder: Path, files: list[list[Text]]) -> CorpusConfig:
    folder.mkdir(exist_ok=True)
    for number, texts in enumerate(files):
        records = [json.dumps({"text": "\n".join(text)}) + "\n" for text in texts]
        (folder / f"{number}.jsonl").write_text("".join(records))
    return CorpusConfig(paths=(str(folder),))


def plain_loop(texts: list[Text], min_characters: int) -> tuple[list[str], list[str]]:
    """The texts that stay, and why the others do not."""
    seen: set[str] = set()
    wholes: set[str] = set()
    stays, reasons = [], []
    for text in texts:
        once: Text = []
        here: set[str] = set()
        for line in text:
            key = line.strip().casefold()
            if len(key) < 20 or key not in here:
                once.append(line)
            if len(key) >= 20:
                here.add(key)
        left = "\n".join(line for line in once if line.strip().casefold() not in seen).strip()
        seen |= here
        whole = " ".join("\n".join(once).split())
        if whole in wholes:
            reasons.append("duplicate")
        elif len(left) < min_characters:
            reasons.append("repeated_lines.little_left")
        else:
            stays.append(left)
        wholes.add(whole)
    return stays, sorted(reasons)


@pytest.fixture(autouse=True)
def each_file_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MIN_PARTITION_BYTES", 1)
    monkeypatch.setattr(partitions, "_MAX_PARTITION_BYTES", 1)


def packed(config: PrepConfig) -> tuple[list[str], list[str], int]:
    """Run the stages up to pack, all tasks one by one: the texts that are packed, why others are not, and map tasks."""
    run_task(config, "plan", None, no_progress)
    for stage in ALL_STAGES[1 : ALL_STAGES.index("pack") + 1]:
        for index in range(count_tasks(config, stage)):
            run_task(config, stage, index, no_progress)
    work = Path(f"{config.output}.partial")
    parts = sorted((work / "pack").glob("0*"))
    texts = [text for part in parts for text in pq.read_table(part / "text.parquet")["text"].to_pylist()]
    rejected = [reason for stage in ("map", "pack") for part in (work / stage).glob("0*") for reason in reasons(part)]
    return texts, sorted(rejected), len(parts)


def reasons(part: Path) -> list[str]:
    record = json.loads((part / "record.json").read_text())
    sources = [source.get("rejects", {}) for source in record["sources"].values()]
    return [reason for found in sources for reason, count in found.items() for _ in range(count)]


whole_keys = lines.line_keys


def keys_of_one_half(text: str, min_characters: int) -> list[bytes | None]:
    return [None if key is None else b"7" * 8 + key[8:] for key in whole_keys(text, min_characters)]


LINE = st.sampled_from([
    FOOTER, f" {FOOTER.upper()}", "The quick brown fox jumps over", "a lazy dog while seven small wizards",
    "quietly boil unusual potions near", "rivers forests mountains and green", "short house", "fox",
])  # fmt: skip
FILES = st.lists(st.lists(st.lists(LINE, min_size=1, max_size=4), min_size=1, max_size=8), min_size=3, max_size=3)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(files=FILES, min_characters=st.sampled_from([1, 12]), ranges=st.sampled_from([1, 3]), half=st.booleans())
def test_kept_text_is_that_of_a_plain_loop(
    tiny_config: PrepConfig, files: list[list[Text]], min_characters: int, ranges: int, half: bool
) -> None:
    """Also where many lines share half of their hash."""
    texts = [[line.strip() if number == 0 else line for number, line in enumerate(text)] for f in files for text in f]
    whole = ["\n".join(text).strip() for text in texts]
    expected = plain_loop([text.split("\n") for text in whole if len(text) >= min_characters], min_characters)
    few = ["too_short"] * sum(len(text) < min_characters for text in whole)
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.stages.records.range_tasks", lambda entries, *_: ranges if entries else 0)
        patch.setattr(lines, "HELD_LINES", 3)
        patch.setattr(hash_ranges, "BUCKET_ENTRIES", 2)
        if half:
            patch.setattr(lines, "line_keys", keys_of_one_half)
        config = replace(
            tiny_config, corpus=corpus(Path(place) / "corpus", files), output=f"{place}/shards", filters=ACROSS,
            cleaning=CleaningConfig(min_characters=min_characters), write_text=True, num_workers=1,
        )  # fmt: skip
        stays, rejected, parts = packed(config)
        assert parts == 3
        assert (stays, rejected) == (expected[0], sorted([*expected[1], *few]))
        patch.setattr(partitions, "_MAX_PARTITION_BYTES", 1 << 20)
        patch.setattr(partitions, "MIN_PARTITION_BYTES", 1 << 20)
        assert packed(replace(config, output=f"{place}/one")) == (stays, rejected, 1)


@pytest.fixture(scope="module")
def several_tasks(tiny_config: PrepConfig, tmp_path_factory: pytest.TempPathFactory) -> PrepConfig:
    """Three map tasks: documents with lines of others, an exact and a near-duplicate, one of repeated lines alone."""
    place = tmp_path_factory.mktemp("lines")
    files = [[[*sentences(1, 10 * number + text, 120), FOOTER] for text in range(9)] for number in range(3)]
    files[1].append([MENU, *files[0][0]])
    files[2] += [files[0][0], [FOOTER, MENU], [*sentences(1, 3, 120), "a fox", FOOTER]]
    return replace(
        tiny_config, corpus=corpus(place / "corpus", files), output=str(place / "shards"), filters=ACROSS,
        duplicates=DuplicatesConfig(near_threshold=0.6), num_workers=1, write_text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(several_tasks: PrepConfig) -> dict[str, bytes]:
    """The bytes that an undisturbed run makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "MIN_PARTITION_BYTES", 1)
        patch.setattr(partitions, "_MAX_PARTITION_BYTES", 1)
        build_shards(several_tasks, no_progress)
    return bytes_of_files(several_tasks.output)


def bytes_of_files(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*.*"))}


def test_duplicates_stay_duplicates_and_the_manifest_counts_lines(
    several_tasks: PrepConfig, expected: dict[str, bytes]
) -> None:
    assert len(expected) > 5
    assert verify(several_tasks.output).problems == ()
    texts = texts_of(several_tasks.output)
    assert [text["id"] for text in texts if FOOTER in text["text"]] == ["0.jsonl:1"], "the first document keeps it"
    found = {reject["id"]: (reject["reason"], reject["detail"]) for reject in rejects_of(several_tasks.output)}
    assert found == {
        "1.jsonl:10": ("near_duplicate", "of 0.jsonl:1"),
        "2.jsonl:10": ("duplicate", "of 0.jsonl:1"),
        "2.jsonl:11": ("repeated_lines.little_left", "0 characters are left, cleaning.min_characters is 1"),
        "2.jsonl:12": ("near_duplicate", "of 0.jsonl:4"),
    }
    statistics = open_shards(several_tasks.output).manifest["statistics"]
    counts = {"documents": 26, "lines": 26, "characters": 26 * len(FOOTER)}
    assert statistics["repeated_lines"] == statistics["sources"][0]["repeated_lines"] == counts
    assert f"26 lines ({26 * len(FOOTER):,} characters) of 26 documents" in expected["report.html"].decode()


@pytest.mark.slow
def test_workers_change_no_byte(several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path) -> None:
    build_shards(replace(several_tasks, output=str(tmp_path / "shards"), num_workers=2), no_progress)
    assert bytes_of_files(tmp_path / "shards") == expected


FILES_OF_TASKS = [
    "lines/000001/lines.bin", "lines/000001/bearers.bin", "lines/000002/record.json",
    "repeated/000000/rows.bin", "repeated/000000/index.bin", "repeated/000000/record.json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("until", "file", "damage"),
    [
        (until, file, damage)
        for until in ("lines", "repeated")
        for file in FILES_OF_TASKS
        for damage in (zeroed, cut_short)
        if until == "repeated" or file.startswith("lines/")
    ],
)
def test_what_a_power_cut_damages_is_made_again(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path, until: str, file: str,
    damage: Callable[[Path], None],
) -> None:  # fmt: skip
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    for stage in ALL_STAGES[: ALL_STAGES.index(until) + 1]:
        run_task(config, stage, None, no_progress)
    damage(tmp_path / "shards.partial" / file)
    build_shards(config, no_progress)
    assert bytes_of_files(config.output) == expected


def test_killed_at_any_commit_of_the_new_stages_the_same_command_goes_on(
    several_tasks: PrepConfig, expected: dict[str, bytes], tmp_path: Path
) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    kills = 0
    while not (tmp_path / "shards.partial/map/000001").exists():
        assert killed_at(config, 1, ("os.rename",))
        kills += 1
    assert kills >= 4
    build_shards(config, no_progress)
    assert bytes_of_files(config.output) == expected


def test_lines_of_a_document_that_a_filter_drops_stay_in_the_next_one(tiny_config: PrepConfig, tmp_path: Path) -> None:
    files = [[["fox { lazy } dog", MENU], ["a lazy dog", MENU]], [["a green fox", MENU]]]
    config = replace(
        tiny_config, corpus=corpus(tmp_path / "corpus", files), output=str(tmp_path / "shards"), write_text=True,
        filters=replace(ACROSS, c4=C4Config(enabled=True, terminal_punctuation=False, min_words_per_line=None,
        min_sentences=None)),
    )  # fmt: skip
    texts, rejected, _ = packed(config)
    assert texts == [f"a lazy dog\n{MENU}", "a green fox"]
    assert rejected == ["c4.curly_bracket"]


@pytest.mark.parametrize("exact", [True, False])
def test_lines_of_the_validation_split_are_not_trained_on(tiny_config: PrepConfig, tmp_path: Path, exact: bool) -> None:
    held_out = [["small wizards", FOOTER], ["green fox", FOOTER]]
    trained = [["a lazy dog", FOOTER], ["small wizards", FOOTER], ["small wizards", FOOTER], ["lazy dog over fox"]]
    config = replace(
        tiny_config, corpus=corpus(tmp_path / "corpus", [trained]), output=str(tmp_path / "shards"), write_text=True,
        validation_paths=corpus(tmp_path / "validation", [held_out]).paths, validation_fraction=None, filters=ACROSS,
        duplicates=DuplicatesConfig(exact=exact),
    )  # fmt: skip
    texts, rejected, _ = packed(config)
    assert texts == [f"small wizards\n{FOOTER}", "green fox", "a lazy dog", "lazy dog over fox"]
    assert rejected == ["in_validation"] * 2


def test_repacked_and_appended_shards_are_those_of_the_corpus(several_tasks: PrepConfig, tmp_path: Path) -> None:
    parent = replace(several_tasks, output=str(tmp_path / "parent"), keep_documents=True)
    build_shards(parent, no_progress)
    more = corpus(tmp_path / "more", [[[*sentences(1, 90 + number, 60), FOOTER] for number in range(3)]])
    for command, options, corpus_of_both in (
        ("repack", ["--seed", "3"], parent.corpus.paths),
        ("append", ["--corpus.paths", f"[{more.paths[0]}]"], (*parent.corpus.paths, *more.paths)),
    ):
        new, direct = tmp_path / command, tmp_path / f"{command}-direct"
        argv = [command, parent.output, "--output", str(new), "--num_workers", "1", *options]
        assert main(argv) == 0
        seed = 3 if command == "repack" else parent.seed
        build_shards(
            replace(several_tasks, output=str(direct), corpus=CorpusConfig(paths=corpus_of_both), seed=seed),
            no_progress,
        )
        assert tars_of(new) == tars_of(direct)
        statistics = open_shards(new).manifest["statistics"]
        assert statistics["repeated_lines"] == open_shards(direct).manifest["statistics"]["repeated_lines"]
    assert FOOTER not in "".join(text["text"] for text in texts_of(new) if text["id"].startswith("2//"))


def test_without_the_option_nothing_knows_of_it(
    tiny_config: PrepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan of before this option is gone on with."""
    within = FiltersConfig(repeated_lines=RepeatedLinesConfig(enabled=True))
    config = replace(tiny_config, output=str(tmp_path / "shards"), filters=within)
    assert pinned_configuration(config)["filters"] == {"repeated_lines": {"enabled": True, "min_characters": 20}}
    assert stages_of(config) == STAGES
    build_shards(config, no_progress)
    assert "repeated_lines" not in open_shards(config.output).manifest["statistics"]
    settings_file = tmp_path / "prep.yaml"
    settings_file.write_text(json.dumps(config_as_dict(config)))
    assert main(["shards", "--config", str(settings_file), "--task", "lines"]) == 2
    assert "--task lines needs --filters.repeated_lines.across_documents true" in capsys.readouterr().err
    off = ["--filters.repeated_lines.enabled", "false", "--filters.repeated_lines.across_documents", "true"]
    assert main(["shards", "--config", str(settings_file), *off]) == 2
    assert "across_documents needs filters.repeated_lines.enabled" in capsys.readouterr().err


def test_a_cluster_gets_the_stages_where_they_are(several_tasks: PrepConfig, tmp_path: Path) -> None:
    config = replace(several_tasks, output=str(tmp_path / "shards"))
    cluster = ClusterConfig(prep=PrepJobsConfig(array_tasks=2))
    jobs = {job.stage: job.elements for job in jobs_to_send(config, cluster)}
    assert tuple(jobs) == ALL_STAGES
    assert jobs["lines"] == jobs["repeated"] == (0, 1)
    run_task(config, "plan", None, no_progress)
    with pytest.raises(UserError, match=r"lines task 0 .* is not done"):
        run_task(config, "map", 0, no_progress)
    for index in (0, 1):
        run_task(config, "lines", index, no_progress)
    (first, *_) = jobs_to_send(config, cluster)
    assert (first.stage, first.elements) == ("lines", (1,)), "what is left"
    off = replace(config, filters=FiltersConfig())
    assert tuple(job.stage for job in jobs_to_send(off, cluster)) == STAGES


def test_vocab_says_that_it_counts_the_lines(several_tasks: PrepConfig, tmp_path: Path) -> None:
    config = replace(several_tasks, tokenizer=str(tmp_path / "tokenizer.json"))
    (line,) = [note for note in build_vocabulary(config, no_progress).notes if "across_documents" in note]
    assert "for shards alone" in line

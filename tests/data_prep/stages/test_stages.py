import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import (
    CleaningConfig,
    CorpusConfig,
    DuplicatesConfig,
    MaskConfig,
    PackingConfig,
    PrepConfig,
    RemaskConfig,
)
from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.shards import open_shards
from data_prep.contract.tokenizer import load_tokenizer
from data_prep.corpus import partitions as corpus_partitions
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.reading import read_partition, read_texts
from data_prep.report.statistics import merge
from data_prep.reuse.remask import remask
from data_prep.stages import finish, order
from data_prep.stages.build import build_shards, count_tasks, run_task
from data_prep.stages.map import document_draw
from data_prep.stages.pack import shuffle_keys
from data_prep.stages.records import STAGES
from data_prep.verification.folder import verify
from tests.data_prep.conftest import NoProgress, no_progress
from tests.data_prep.filters import generated_text


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def rows_of(folder, name):
    """[(row's real tokens, sequence id)] of a split, in order."""
    split = open_shards(folder).split(name)
    for index in range(len(split.chunk_rows)):
        arrays = split.chunk(index)
        for ids, length, number in zip(arrays["input_ids"], arrays["lengths"], arrays["sequence_ids"], strict=True):
            yield ids[:length], int(number)


def rejects_of(folder):
    with gzip.open(Path(folder) / "rejects.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


@pytest.fixture
def many_tasks(tiny_config, tmp_path, monkeypatch):
    """The tiny configuration on eight files, each a map task of its own."""
    monkeypatch.setattr(corpus_partitions, "MIN_PARTITION_BYTES", 5_000)
    for number in range(8):
        corpus_of(tmp_path / "corpus", sentences(25, number), f"part{number}.jsonl")
    return replace(tiny_config, corpus=CorpusConfig(paths=(str(tmp_path / "corpus"),)))


def corpus_of(folder, texts, name="texts.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CorpusConfig(paths=(str(folder),))


def sentences(count, seed, words=60):
    draw = random.Random(seed)
    vocabulary = ["fox", "dog", "wizard", "potion", "river", "forest", "house", "green", "walking", "lazy"]
    return [" ".join(draw.choices(vocabulary, k=words)) + f" {number}" for number in range(count)]


def test_the_worker_count_changes_no_byte(many_tasks, tmp_path):
    folders = []
    for workers in (1, 2, 4):
        output = tmp_path / f"workers{workers}"
        build_shards(replace(many_tasks, output=str(output), num_workers=workers), no_progress)
        folders.append(bytes_of(output))
    assert len(folders[0]) > 5
    assert folders[0] == folders[1] == folders[2]


def test_tasks_one_by_one_in_shuffled_order_change_no_byte(many_tasks, tmp_path):
    whole, single = tmp_path / "whole", tmp_path / "single"
    build_shards(replace(many_tasks, output=str(whole)), no_progress)
    config = replace(many_tasks, output=str(single))
    run_task(config, "plan", None, no_progress)
    draw = random.Random(3)
    counts = {}
    for stage in STAGES[1:-1]:
        counts[stage] = count_tasks(config, stage)
        numbers = list(range(counts[stage]))
        draw.shuffle(numbers)
        for number in [*numbers, numbers[0]]:  # once more: nothing changes
            run_task(config, stage, number, no_progress)
    assert counts["map"] == counts["pack"] == 8
    assert counts["reduce"] > 2
    run_task(config, "finish", None, no_progress)
    assert bytes_of(whole) == bytes_of(single)


def test_a_task_says_what_it_waits_for(tiny_config, tmp_path):
    config = replace(tiny_config, output=str(tmp_path / "shards"))
    with pytest.raises(UserError, match=r"no plan .* --task plan"):
        run_task(config, "map", 0, no_progress)
    run_task(config, "plan", None, no_progress)
    with pytest.raises(UserError, match=r"map task 0 .* is not done"):
        run_task(config, "duplicates", None, no_progress)
    with pytest.raises(UserError, match=r"--index 99: the map tasks are numbered 0 to 0"):
        run_task(config, "map", 99, no_progress)
    with pytest.raises(UserError, match=r"another configuration \(seed differ\)"):
        run_task(replace(config, seed=3), "map", 0, no_progress)
    assert (tmp_path / "shards.partial" / "plan.json").is_file(), "a mistake in one task spoils nothing"


def rewriting(file):
    """``read_partition`` of a corpus that somebody writes to meanwhile."""

    def read(*arguments):
        yield from read_partition(*arguments)
        file.write_text(file.read_text() + json.dumps({"text": "late"}) + "\n")

    return read


def test_a_changed_input_is_noticed_and_never_mixed(tiny_config, tmp_path, monkeypatch):
    corpus = corpus_of(tmp_path / "corpus", sentences(300, 1))
    config = replace(tiny_config, output=str(tmp_path / "shards"), corpus=corpus)
    run_task(config, "plan", None, no_progress)
    run_task(config, "map", None, no_progress)
    file = tmp_path / "corpus" / "texts.jsonl"
    os.utime(file)  # only touched: the same content
    run_task(config, "map", None, no_progress)
    for touched in (False, True):  # changed after the plan, and while a task read it
        single = replace(config, output=str(tmp_path / f"single{touched}"))
        corpus_of(tmp_path / "corpus", sentences(300, 1))
        run_task(single, "plan", None, no_progress)
        if touched:
            monkeypatch.setattr("data_prep.stages.texts.reading.read_partition", rewriting(file))
        else:
            corpus_of(tmp_path / "corpus", sentences(300, 2))
        with pytest.raises(UserError, match=r"texts\.jsonl is not what it was"):
            run_task(single, "map", None, no_progress)
    monkeypatch.undo()
    progress = NoProgress()
    corpus_of(tmp_path / "corpus", sentences(300, 2))
    build_shards(config, progress)
    assert any("starting anew" in note for note in progress.notes)
    fresh = replace(config, output=str(tmp_path / "fresh"))
    build_shards(fresh, no_progress)
    assert bytes_of(config.output) == bytes_of(fresh.output)


def test_every_token_of_every_document_is_in_the_rows_of_its_split(many_tasks, tmp_path):
    output = tmp_path / "shards"
    build_shards(replace(many_tasks, output=str(output)), no_progress)
    assert verify(output).problems == ()
    tokenizer = load_tokenizer(many_tasks.tokenizer)
    wanted = {"train": [], "validation": []}
    files = find_corpus_files(many_tasks.corpus)
    for file in files:
        for number, text in enumerate(read_texts([file], many_tasks), start=1):
            name = f"{file.name}:{number}" if file.kind == "jsonl" else file.name
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            wanted["validation" if document_draw(name) < many_tasks.validation_fraction else "train"] += ids
    for name, tokens in wanted.items():
        rows = sorted(rows_of(output, name), key=lambda pair: pair[1])  # the order of the corpus
        assert len({number >> 32 for _, number in rows}) > 1, "several map tasks"
        found = np.concatenate([ids for ids, _ in rows])
        np.testing.assert_array_equal(found[~np.isin(found, [2, 3])], tokens)
        counts = open_shards(output).manifest["splits"][name]
        assert counts["tokens"] == len(tokens)
        assert counts["rows"] == len(rows)


@pytest.mark.parametrize("mode", ["isolated", "document"])
def test_every_token_is_in_the_rows_of_every_packing(tiny_config, tmp_path, mode):
    outputs = []
    for name in ("concat", mode):
        outputs.append(tmp_path / name)
        packing = PackingConfig(mode=name)
        build_shards(replace(tiny_config, output=str(outputs[-1]), packing=packing), no_progress)
        assert verify(outputs[-1]).problems == ()
    for split in ("train", "validation"):
        concat, other = (np.concatenate([ids for ids, _ in rows_of(folder, split)]) for folder in outputs)
        concat, other = (np.sort(ids[~np.isin(ids, [2, 3])]) for ids in (concat, other))
        np.testing.assert_array_equal(concat, other)


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
def test_every_masking_makes_legal_shards(tiny_config, tmp_path, unit):
    output = tmp_path / "shards"
    build_shards(replace(tiny_config, output=str(output), mask=MaskConfig(variants=2, unit=unit)), no_progress)
    assert verify(output).problems == ()
    arrays = open_shards(output).split("train").chunk(0)
    assert (arrays["num_masked"][arrays["lengths"] == 32] == 5).all()
    assert (arrays["masked_positions"][:, 0] != arrays["masked_positions"][:, 1]).any()


def test_rows_are_shuffled_across_shards_and_by_the_seed(tiny_config, tiny_shards, tmp_path):
    order = [number for _, number in rows_of(tiny_shards, "train")]
    assert order != sorted(order)
    quarter = len(order) // 4
    means = [np.mean(order[i * quarter : (i + 1) * quarter]) for i in range(4)]
    assert max(means) < 1.5 * min(means), "each part of the folder holds rows from all of the corpus"
    other = tmp_path / "other"
    build_shards(replace(tiny_config, output=str(other), seed=1), no_progress)
    assert [number for _, number in rows_of(other, "train")] != order


def test_nothing_depends_on_how_much_is_held_at_once(many_tasks, tmp_path, monkeypatch):
    config = replace(many_tasks, duplicates=DuplicatesConfig(near_threshold=0.7))
    build_shards(replace(config, output=str(tmp_path / "whole")), no_progress)
    for name in ("order.HASHED_ROWS", "order.BIN_ROWS", "pack.FILL_ROWS", "texts.hash_ranges.BUCKET_ENTRIES"):
        monkeypatch.setattr(f"data_prep.stages.{name}", 7)
    monkeypatch.setattr("data_prep.stages.pack.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("data_prep.stages.pack.SCATTERED_ROWS", 5)
    monkeypatch.setattr("data_prep.stages.order.MIN_TASKS", 2)  # several shards a task
    monkeypatch.setattr("data_prep.stages.records.MIN_RANGE_BYTES", 1 << 12)
    monkeypatch.setattr("data_prep.arrays.spill.Spill.__init__.__defaults__", (1_000,))
    build_shards(replace(config, output=str(tmp_path / "pieces")), no_progress)
    assert bytes_of(tmp_path / "pieces") == bytes_of(tmp_path / "whole")


@given(
    seed=st.integers(0, 9),
    counts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), min_size=1, max_size=12),
    rows_per_shard=st.integers(1, 50),
    bin_rows=st.sampled_from([1, 8, 256]),
)
def test_shards_begin_where_a_plain_sort_has_them(seed, counts, rows_per_shard, bin_rows):
    first, counts = zip(*counts, strict=True)
    ids = [
        (part << 32) + start + row
        for part, (start, n) in enumerate(zip(first, counts, strict=True))
        for row in range(n)
    ]
    keys = np.sort(shuffle_keys(seed, np.array(ids, dtype=np.uint64)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BIN_ROWS", bin_rows)
        starts = order.shard_starts(seed, first, counts, rows_per_shard)
    assert len(starts) == -(-len(keys) // rows_per_shard)
    assert starts[1:].tolist() == keys[rows_per_shard::rows_per_shard].tolist()
    assert starts[:1].tolist() == [0] * (len(keys) > 0)


def test_duplicates_are_dropped_and_listed(tiny_config, tmp_path, monkeypatch):
    texts = sentences(200, 1)
    doubled = ["  " + texts[7].replace(" ", "\n "), texts[3], texts[7]]
    monkeypatch.setattr(corpus_partitions, "MIN_PARTITION_BYTES", 5_000)  # the second file is a map task of its own
    corpus_of(tmp_path / "corpus", doubled, "z.jsonl")
    found = []
    for workers in (1, 2):
        output = tmp_path / f"shards{workers}"
        config = replace(tiny_config, corpus=corpus_of(tmp_path / "corpus", texts), output=str(output))
        summary = build_shards(replace(config, num_workers=workers), no_progress)
        assert summary.rejects == {"duplicate": 3}
        found.append(bytes_of(output))
    assert found[0] == found[1]
    listed = {(reject["id"], reject["detail"]) for reject in rejects_of(output)}
    expected = {(1, 8), (2, 4), (3, 8)}
    assert listed == {(f"z.jsonl:{later}", f"of texts.jsonl:{first}") for later, first in expected}
    manifest = open_shards(output).manifest
    assert sum(manifest["splits"][name]["documents"] for name in manifest["splits"]) == 200
    kept = replace(config, duplicates=DuplicatesConfig(exact=False), output=str(tmp_path / "kept"))
    assert build_shards(kept, no_progress).rejects == {}


def test_near_duplicates_are_dropped_on_request(tiny_config, tmp_path):
    texts = [text for number in range(100) for text in sentences(1, number, 120)]
    changed = texts[5].replace("fox", "dog", 1)
    config = replace(
        tiny_config,
        corpus=corpus_of(tmp_path / "corpus", [*texts, changed]),
        output=str(tmp_path / "shards"),
        duplicates=DuplicatesConfig(near_threshold=0.7),
    )
    assert build_shards(config, no_progress).rejects == {"near_duplicate": 1}
    (reject,) = rejects_of(config.output)
    assert (reject["id"], reject["detail"]) == ("texts.jsonl:101", "of texts.jsonl:6")


def test_shingles_of_characters_find_copies_that_those_of_words_do_not(tiny_config, tmp_path):
    texts = ["".join(generated_text.sentences("English", 12, seed)) for seed in range(40)]
    copy = generated_text.changed(texts[5], "English", seed=1)
    config = replace(
        tiny_config,
        corpus=corpus_of(tmp_path / "corpus", [*texts, copy]),
        output=str(tmp_path / "words"),
        duplicates=DuplicatesConfig(near_threshold=0.5),
    )
    assert build_shards(config, no_progress).rejects == {}
    duplicates = DuplicatesConfig(near_threshold=0.5, near_characters=5)
    config = replace(config, output=str(tmp_path / "characters"), duplicates=duplicates)
    assert build_shards(config, no_progress).rejects == {"near_duplicate": 1}
    (reject,) = rejects_of(config.output)
    assert (reject["id"], reject["detail"]) == ("texts.jsonl:41", "of texts.jsonl:6")
    pinned = [open_shards(tmp_path / name).manifest["configuration"]["duplicates"] for name in ("words", "characters")]
    assert [found.get("near_characters", "as before") for found in pinned] == ["as before", 5]


def test_documents_of_an_evaluation_set_are_dropped(tiny_config, tmp_path):
    texts = sentences(200, 1)
    evaluation = corpus_of(tmp_path / "evaluation", [" ".join(texts[11].split()[20:40]), "too short"])
    config = replace(
        tiny_config,
        corpus=corpus_of(tmp_path / "corpus", texts),
        output=str(tmp_path / "shards"),
        duplicates=DuplicatesConfig(evaluation_paths=evaluation.paths),
    )
    progress = NoProgress()
    assert build_shards(config, progress).rejects == {"contaminated": 1}
    assert "1 evaluation texts have fewer than 13 words: nothing was checked against them" in progress.notes
    (reject,) = rejects_of(config.output)
    assert reject["id"] == "texts.jsonl:12"
    assert len(reject["detail"].split()) >= 13


@pytest.mark.parametrize("without_spaces", [False, True])
def test_words_without_spaces_are_noted(without_spaces: bool, tiny_config: PrepConfig, tmp_path: Path) -> None:
    texts = sentences(100, 1)
    if without_spaces:  # phrases of six words
        texts = [" ".join("".join(text.split()[i : i + 6]) for i in range(0, len(text.split()), 6)) for text in texts]
    config = replace(
        tiny_config,
        corpus=corpus_of(tmp_path / "corpus", texts),
        mask=MaskConfig(unit="word", variants=1),
        seq_length=64,
        output=str(tmp_path / "shards"),
    )
    progress = NoProgress()
    build_shards(config, progress)
    assert [note[:15] for note in progress.notes if "[UNK]" not in note] == ["mask.unit word:"] * without_spaces
    rows = open_shards(config.output).manifest["statistics"]["rows"]
    assert (rows["masked"] / rows["masked_runs"] > 4) == without_spaces
    again = NoProgress()
    mask = replace(config.mask, variants=2)
    remask(config.output, RemaskConfig(output=str(tmp_path / "again"), mask=mask, num_workers=1), again)
    assert [note[:15] for note in again.notes] == ["mask.unit word:"] * without_spaces


def test_each_source_is_counted(tiny_config: PrepConfig, tmp_path: Path) -> None:
    texts = sentences(60, 1)
    corpus_of(tmp_path / "a", texts[:30], "one.jsonl")
    corpus_of(tmp_path / "a", texts[30:], "two.jsonl")
    corpus_of(tmp_path / "b", [*texts[:12], "", "  ", *sentences(8, 2)], "more.jsonl")  # 14 of 22 are left out
    corpus_of(tmp_path / "c", sentences(50, 3), "half.jsonl")
    paths = tuple(str(tmp_path / name) for name in "abc")
    config = replace(
        tiny_config, corpus=CorpusConfig(paths=paths, weights=(1, 1, 0.5)), output=str(tmp_path / "shards")
    )
    progress = NoProgress()
    build_shards(config, progress)
    statistics = open_shards(config.output).manifest["statistics"]
    first, second, third = statistics["sources"]
    assert first == {
        "files": 2, "first_file": "one.jsonl", "read": 60, "not_sampled": 0, "documents": 60,
        "words": first["words"], "tokens": first["tokens"], "unknown_tokens": first["unknown_tokens"], "rejects": {},
    }  # fmt: skip
    assert second["read"] == 22
    assert second["documents"] == 8
    assert second["rejects"] == {"duplicate": 12, "empty": 2}
    assert 10 < third["not_sampled"] == 50 - third["documents"] < 40
    for key in ("documents", "words", "tokens", "unknown_tokens"):
        assert sum(source[key] for source in statistics["sources"]) == statistics["documents"][key]
    assert merge(source["rejects"] for source in statistics["sources"]) == statistics["rejects"]
    assert [note for note in progress.notes if "[UNK]" not in note] == [
        "entry 2 of corpus.paths (more.jsonl, 1 file): 14 of 22 documents are not in the shards (12 duplicate, 2 empty)"
    ]
    assert "more.jsonl" in (tmp_path / "shards/report.html").read_text().split("By source")[1].split("</table>")[0]


def test_weights_repeat_and_sample_sources(tiny_config, tmp_path):
    first = corpus_of(tmp_path / "first", sentences(300, 1)).paths[0]
    second = corpus_of(tmp_path / "second", sentences(400, 2)).paths[0]

    def build(name, weights):
        corpus = CorpusConfig(paths=(first, second), weights=weights)
        build_shards(replace(tiny_config, corpus=corpus, output=str(tmp_path / name)), no_progress)
        return open_shards(tmp_path / name).manifest

    def tokens(manifest):
        return manifest["splits"]["train"]["tokens"]

    once, only, twice, half = starmap(build, (("once", None), ("only", (1, 0)), ("twice", (2, 1)), ("half", (1, 0.5))))
    assert only["statistics"]["not_sampled"] == 400
    assert tokens(twice) == tokens(once) + tokens(only)
    for key in ("documents", "tokens", "rows"):
        assert twice["splits"]["validation"][key] == once["splits"]["validation"][key], "repeated in train alone"
    assert 160 < half["statistics"]["not_sampled"] < 240
    assert verify(tmp_path / "twice").problems == ()


def test_a_complete_folder_is_left_alone_and_another_refused(tiny_config, tiny_shards, corpus_folder, tmp_path):
    before = bytes_of(tiny_shards)
    again = build_shards(replace(tiny_config, num_workers=2), no_progress)
    assert again.already_there
    assert again.root_hash == open_shards(tiny_shards).root_hash
    with pytest.raises(UserError, match=r"another configuration \(seed differ"):
        build_shards(replace(tiny_config, seed=9), no_progress)
    with pytest.raises(UserError, match=r"another configuration .*mask"):
        build_shards(replace(tiny_config, mask=MaskConfig(variants=4)), no_progress)
    part = CorpusConfig(paths=(str(corpus_folder / "many.jsonl"),))
    with pytest.raises(UserError, match="another corpus"):
        build_shards(replace(tiny_config, corpus=part), no_progress)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("do not touch")
    with pytest.raises(UserError, match="no shard folder"):
        build_shards(replace(tiny_config, output=str(tmp_path / "notes")), no_progress)
    assert bytes_of(tiny_shards) == before


def test_the_root_hash_does_not_depend_on_places(tiny_config, tiny_shards, corpus_folder, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in corpus_folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (tmp_path / "t.json").write_bytes(Path(tiny_config.tokenizer).read_bytes())
    config = replace(
        tiny_config,
        output=str(tmp_path / "shards"),
        tokenizer=str(tmp_path / "t.json"),
        corpus=CorpusConfig(paths=(str(moved),)),
    )
    assert build_shards(config, no_progress).root_hash == open_shards(tiny_shards).root_hash


def test_what_a_killed_run_left_is_taken_up_or_redone(tiny_config, tiny_shards, tmp_path):
    config = replace(tiny_config, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    run_task(config, "map", 0, no_progress)
    work = tmp_path / "shards.partial"
    done = (work / "map" / "000000" / "record.json").stat().st_mtime_ns
    (work / "map" / "000000.77.partial").mkdir()
    (work / "map" / "000000.77.partial" / "tokens.bin").write_bytes(b"half")
    (work / "shards" / "train-00000.tar").write_bytes(b"half")
    for stage in STAGES[1:-2]:
        run_task(config, stage, None, no_progress)
    assert (work / "map" / "000000" / "record.json").stat().st_mtime_ns == done, "not run again"
    build_shards(config, no_progress)
    assert bytes_of(config.output) == bytes_of(tiny_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_two_runs_on_one_output_do_not_meet(tiny_config, tmp_path):
    config = replace(tiny_config, output=str(tmp_path / "shards"))
    run_task(config, "plan", None, no_progress)
    other = os.open(tmp_path / "shards.partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)  # as a run of single tasks holds it
    try:
        with pytest.raises(UserError, match="another narrowbert-prep is at work"):
            build_shards(config, no_progress)
        run_task(config, "map", 0, no_progress)  # single tasks go on side by side
    finally:
        os.close(other)
    build_shards(config, no_progress)


@pytest.mark.slow
def test_sigkill_at_random_moments_then_the_same_command_again(tiny_config, tiny_shards, tmp_path):
    output = tmp_path / "shards"
    settings = tmp_path / "prep.yaml"
    settings.write_text(json.dumps(config_as_dict(replace(tiny_config, output=str(output), num_workers=2))))
    command = [sys.executable, "-m", "data_prep", "shards", "--config", str(settings)]
    draw = random.Random(0)
    kills = int(os.environ.get("NARROWBERT_TEST_KILLS", "5"))
    for _ in range(kills):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(draw.uniform(0.3, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert bytes_of(output) == bytes_of(tiny_shards)


@pytest.mark.parametrize(
    "packing",
    [
        PackingConfig(),
        PackingConfig(mode="isolated"),
        PackingConfig(mode="document", short_seq_prob=0.3, drop_remainder_below=5),
    ],
    ids=lambda packing: packing.mode,
)
@pytest.mark.parametrize(("fraction", "short"), [(0.0001, "validation"), (0.01, "validation"), (0.985, "train")])
def test_the_fraction_that_is_advised_gives_both_splits_enough_rows(many_tasks, tmp_path, packing, fraction, short):
    (tmp_path / "corpus/long.jsonl").write_text(json.dumps({"text": " ".join(sentences(40, 9))}))  # is cut into pieces
    corpus_of(tmp_path / "corpus", sentences(25, 3), "again.jsonl")  # duplicates
    config = replace(many_tasks, packing=packing, cleaning=CleaningConfig(max_characters=1_000))
    with pytest.raises(UserError, match=rf"the {short} split gets \d+ rows .*, or --validation_fraction 0\.") as caught:
        build_shards(replace(config, output=str(tmp_path / "a"), validation_fraction=fraction), no_progress)
    advised = float(str(caught.value).split("--validation_fraction ")[1].split()[0])
    build_shards(replace(config, output=str(tmp_path / "b"), validation_fraction=advised), no_progress)


def test_a_corpus_too_large_to_search_is_told_the_direction(many_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "_MOST_SEARCHED", 10)
    monkeypatch.setattr(finish, "_Survivors", None)  # it would hold all draws
    for fraction, said in (
        (1e-3, "take a larger --validation_fraction"),
        (0.985, "take a smaller --validation_fraction"),
    ):
        with pytest.raises(UserError, match=rf"{said}, it is {fraction:g}"):
            build_shards(replace(many_tasks, output=str(tmp_path / "a"), validation_fraction=fraction), no_progress)


def test_too_little_text_says_how_to_mend_it(tiny_config, corpus_folder, tmp_path):
    output = str(tmp_path / "shards")
    one = CorpusConfig(paths=(str(corpus_folder / "first.txt"),))
    with pytest.raises(UserError, match=r"split would be empty: the corpus is 1 \.txt file"):
        build_shards(replace(tiny_config, output=output, corpus=one), no_progress)
    (tmp_path / "empty.jsonl").write_text(" \n")
    empty = CorpusConfig(paths=(str(tmp_path / "empty.jsonl"),))
    with pytest.raises(UserError, match="holds no text"):
        build_shards(replace(tiny_config, output=output, corpus=empty), no_progress)
    assert not Path(output).exists()
    assert build_shards(replace(tiny_config, output=output), no_progress).splits["validation"]["rows"] >= 16


def test_a_wrong_text_field_is_named(tiny_config, tmp_path):
    corpus = corpus_of(tmp_path / "corpus", sentences(30, 1))
    config = replace(tiny_config, output=str(tmp_path / "shards"), corpus=replace(corpus, text_field="body"))
    with pytest.raises(UserError, match=r"all was rejected \(30 no_text_field\).*text.*--corpus.text_field"):
        build_shards(config, no_progress)


def test_long_documents_are_split_and_short_ones_rejected(tiny_config, tmp_path):
    texts = [*sentences(100, 1), " ".join(sentences(20, 2)), "fox"]
    cleaning = CleaningConfig(max_characters=1_000, min_characters=10)
    config = replace(
        tiny_config, corpus=corpus_of(tmp_path / "c", texts), cleaning=cleaning, output=str(tmp_path / "shards")
    )
    assert build_shards(config, no_progress).rejects == {"too_short": 1}
    whole = replace(config, cleaning=CleaningConfig(), output=str(tmp_path / "whole"))
    build_shards(whole, no_progress)
    documents = [
        sum(split["documents"] for split in open_shards(c.output).manifest["splits"].values()) for c in (config, whole)
    ]
    assert documents[0] > documents[1] - 1 + 5


def test_literal_special_tokens_of_the_corpus_are_ordinary_text(tiny_shards):
    # second.txt ends in "[MASK] [SEP] [PAD]"; verify refuses a [MASK] among the original tokens.
    assert verify(tiny_shards).problems == ()
    brackets = load_tokenizer(tiny_shards / "tokenizer.json").token_to_id("[")
    rows = [ids for name in ("train", "validation") for ids, _ in rows_of(tiny_shards, name)]
    assert sum(int((ids == brackets).sum()) for ids in rows) == 3


def test_statistics_add_up(tiny_shards):
    manifest = open_shards(tiny_shards).manifest
    statistics = manifest["statistics"]
    rows = sum(split["rows"] for split in manifest["splits"].values())
    assert statistics["read"] == 60
    assert statistics["rows"]["rows"] == rows
    assert statistics["documents"]["documents"] == 60
    assert statistics["documents"]["tokens"] == sum(split["tokens"] for split in manifest["splits"].values())


def test_builtin_corpus_makes_shards(tiny_config, tmp_path):
    config = replace(tiny_config, output=str(tmp_path / "shards"), corpus=CorpusConfig(builtin_max_bytes=100_000))
    summary = build_shards(config, no_progress)
    assert summary.splits["train"]["rows"] > 100
    assert verify(config.output).problems == ()

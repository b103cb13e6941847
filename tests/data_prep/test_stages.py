import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import no_progress

from data_prep import stages
from data_prep.command_line import UserError, config_as_dict
from data_prep.config import CorpusConfig, MaskConfig
from data_prep.corpus import find_sources, read_documents
from data_prep.shards import open_shards, verify
from data_prep.stages import build_shards, split_of
from data_prep.vocabulary import load_tokenizer


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def rows_of(folder, name):
    """[(row's real tokens, sequence id)] of a split, in order."""
    split = open_shards(folder).split(name)
    for index in range(len(split.chunk_rows)):
        arrays = split.chunk(index)
        for ids, length, number in zip(arrays["input_ids"], arrays["lengths"], arrays["sequence_ids"], strict=True):
            yield ids[:length], int(number)


@pytest.fixture
def small_groups(monkeypatch):
    """Several groups even from the tiny corpus."""
    monkeypatch.setattr(stages, "GROUP_CHARACTERS", 20_000)


def test_the_worker_count_changes_no_byte(tiny_config, tmp_path, small_groups):
    folders = []
    for workers in (1, 2, 3):
        output = tmp_path / f"workers{workers}"
        build_shards(replace(tiny_config, output=str(output), num_workers=workers), no_progress)
        folders.append(bytes_of(output))
    assert len(folders[0]) > 5
    assert folders[0] == folders[1] == folders[2]


def test_every_token_of_every_document_is_in_the_rows_of_its_split(tiny_config, tmp_path, small_groups):
    output = tmp_path / "shards"
    build_shards(replace(tiny_config, output=str(output)), no_progress)
    assert verify(output).problems == ()
    tokenizer = load_tokenizer(tiny_config.tokenizer)
    wanted = {"train": [], "validation": []}
    for document in read_documents(find_sources(tiny_config.corpus), tiny_config.corpus):
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        wanted[split_of(document.id, tiny_config.validation_fraction)] += ids
    for name, tokens in wanted.items():
        rows = sorted(rows_of(output, name), key=lambda pair: pair[1])  # the order of the corpus
        assert len({number >> 32 for _, number in rows}) > 1, "several groups"
        found = np.concatenate([ids for ids, _ in rows])
        np.testing.assert_array_equal(found[~np.isin(found, [2, 3])], tokens)
        counts = open_shards(output).manifest["splits"][name]
        assert counts["tokens"] == len(tokens)
        assert counts["rows"] == len(rows)


def test_rows_are_shuffled_across_shards_and_by_the_seed(tiny_config, tiny_shards, tmp_path):
    order = [number for _, number in rows_of(tiny_shards, "train")]
    assert order != sorted(order)
    quarter = len(order) // 4
    means = [np.mean(order[i * quarter : (i + 1) * quarter]) for i in range(4)]
    assert max(means) < 1.5 * min(means), "each part of the folder holds rows from all of the corpus"
    other = tmp_path / "other"
    build_shards(replace(tiny_config, output=str(other), seed=1), no_progress)
    assert [number for _, number in rows_of(other, "train")] != order


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


def test_what_a_killed_run_left_is_redone(tiny_config, tiny_shards, tmp_path):
    output = tmp_path / "shards"
    (tmp_path / "shards.partial" / "groups").mkdir(parents=True)
    (tmp_path / "shards.partial" / "groups" / "train-000000.safetensors").write_bytes(b"half")
    (tmp_path / "shards.partial" / "train-00000.tar").write_bytes(b"half")
    build_shards(replace(tiny_config, output=str(output)), no_progress)
    assert bytes_of(output) == bytes_of(tiny_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.slow
def test_sigkill_at_some_moments_then_the_same_command_again(tiny_config, tiny_shards, tmp_path):
    output = tmp_path / "shards"
    settings = tmp_path / "prep.yaml"
    settings.write_text(json.dumps(config_as_dict(replace(tiny_config, output=str(output), num_workers=2))))
    command = [sys.executable, "-m", "data_prep", "shards", "--config", str(settings)]
    for delay in (0.4, 0.8, 1.2, 1.6, 2.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert bytes_of(output) == bytes_of(tiny_shards)


def test_too_little_text_says_how_to_mend_it(tiny_config, corpus_folder, tmp_path):
    output = str(tmp_path / "shards")
    with pytest.raises(UserError, match=r"validation split gets 0 rows .*--validation_fraction 0\.\d+") as caught:
        build_shards(replace(tiny_config, output=output, validation_fraction=0.0001), no_progress)
    advised = float(str(caught.value).split("--validation_fraction ")[1].split()[0])
    documents = read_documents(find_sources(tiny_config.corpus), tiny_config.corpus)
    assert "validation" in {split_of(document.id, advised) for document in documents}
    one = CorpusConfig(paths=(str(corpus_folder / "first.txt"),))
    with pytest.raises(UserError, match=r"1 of 1 documents|0 of 1 documents"):
        build_shards(replace(tiny_config, output=output, corpus=one), no_progress)
    (tmp_path / "empty.txt").write_text(" \n")
    empty = CorpusConfig(paths=(str(tmp_path / "empty.txt"),))
    with pytest.raises(UserError, match="holds no text"):
        build_shards(replace(tiny_config, output=output, corpus=empty), no_progress)
    assert not list(tmp_path.glob("shards*")), "nothing half made is left"


def test_literal_special_tokens_of_the_corpus_are_ordinary_text(tiny_shards):
    # second.txt ends in "[MASK] [SEP] [PAD]"; verify refuses a [MASK] among the original tokens.
    assert verify(tiny_shards).problems == ()
    brackets = load_tokenizer(tiny_shards / "tokenizer.json").token_to_id("[")
    rows = [ids for name in ("train", "validation") for ids, _ in rows_of(tiny_shards, name)]
    assert sum(int((ids == brackets).sum()) for ids in rows) == 3


def test_builtin_corpus_makes_shards(tiny_config, tmp_path):
    config = replace(tiny_config, output=str(tmp_path / "shards"), corpus=CorpusConfig(builtin_max_bytes=100_000))
    summary = build_shards(config, no_progress)
    assert summary.splits["train"]["rows"] > 100
    assert verify(config.output).problems == ()

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import CorpusConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.draws import (
    check_draws,
    copies_of,
    copies_of_draws,
    document_draw,
    number_between,
    sampling_rate,
    temperature_weights,
    weight_draw,
)
from data_prep.corpus.files import find_corpus_files
from data_prep.stages.build import build_shards, run_task
from tests.data_prep.conftest import WORDS, NoProgress, no_progress


def text_of(paragraphs, words=60, seed=1):
    draw = random.Random(seed)
    return "\n\n".join(" ".join(draw.choices(WORDS, k=words)) for _ in range(paragraphs))


@pytest.mark.parametrize("task", [None, "plan"])
def test_one_text_file_is_refused_before_any_work_with_what_helps(tiny_config, tmp_path, task):
    (tmp_path / "book.txt").write_text(text_of(200))
    config = dataclasses.replace(
        tiny_config, output=str(tmp_path / "out"), corpus=CorpusConfig(paths=str(tmp_path / "book.txt"))
    )

    def run(config):
        if task is None:
            build_shards(config, no_progress)
        else:
            run_task(config, task, None, no_progress)

    for fraction in (0.1, 0.99):
        with pytest.raises(UserError, match=r"would be empty: .* 1 \.txt file.* --corpus\.txt_documents paragraph"):
            run(dataclasses.replace(config, validation_fraction=fraction))
    assert not list((tmp_path / "out.partial").glob("map/*"))
    run(dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, txt_documents="paragraph")))


def surveyed(config):
    return [(file, Path(file.path).stat().st_size) for file in find_corpus_files(config.corpus)]


@pytest.mark.parametrize(("fraction", "empty"), [(0.001, "validation"), (0.9999, "train")])
def test_the_fraction_that_is_advised_gives_both_splits_enough(tiny_config, tmp_path, fraction, empty):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(text_of(8, seed=number))
    config = dataclasses.replace(
        tiny_config,
        corpus=CorpusConfig(paths=str(tmp_path)),
        validation_fraction=fraction,
        output=str(tmp_path / "out"),
    )
    with pytest.raises(UserError, match=f"the {empty} split would be empty") as refused:
        build_shards(config, no_progress)
    build_shards(dataclasses.replace(config, validation_fraction=advised_fraction(refused)), no_progress)


def advised_fraction(refused):
    return float(str(refused.value).split("--validation_fraction ")[1].split()[0])


def test_no_fraction_is_advised_where_none_is_sure(tiny_config, tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text("text")
    config = dataclasses.replace(tiny_config, corpus=CorpusConfig(paths=str(tmp_path)), validation_fraction=0.001)
    with pytest.raises(UserError, match=r"or more files$"):
        check_draws(surveyed(config), config)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_number_between_two_is_between_them(one, other):
    low, high = sorted((one, other))
    if low < high:
        assert low < float(number_between(low, high)) <= high
    assert number_between(0.118, 0.131) == "0.13"


def test_what_is_not_certain_is_not_refused(tiny_config, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for others in ({"txt_documents": "line"}, {"txt_documents": "paragraph"}):
        config = dataclasses.replace(tiny_config, corpus=CorpusConfig(paths=str(tmp_path), **others))
        check_draws(surveyed(config), config)
    (tmp_path / "b.jsonl").write_text('{"text": "text"}\n')
    config = dataclasses.replace(tiny_config, corpus=CorpusConfig(paths=str(tmp_path)))
    check_draws(surveyed(config), config)


def test_too_little_text_names_the_remedy_for_text_files(tiny_config, tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").write_text(text_of(1, seed=number))
    config = dataclasses.replace(
        tiny_config, output=str(tmp_path / "out"), corpus=CorpusConfig(paths=str(tmp_path)), validation_fraction=0.4
    )
    with pytest.raises(UserError, match=r"needs 16: give more text.* a \.txt file is one unless .*paragraph or line"):
        build_shards(config, no_progress)


def test_weights_are_met_on_average():
    for weight in (0.0, 0.25, 1.0, 2.5):
        copies = [copies_of(f"file:{number}", weight) for number in range(4_000)]
        assert sum(copies) / 4_000 == pytest.approx(weight, abs=0.03)
        assert set(copies) <= {int(weight), int(weight) + 1}
    assert 0 <= document_draw("a") < 1


WEIGHTS = st.floats(0, 5) | st.sampled_from([0.0, 0.5, 1.0, 2.0])


@given(st.lists(WEIGHTS, max_size=30))
def test_copies_of_many_documents_are_those_of_each(weights):
    draws = np.array([weight_draw(f"file:{number}") for number in range(len(weights))])
    copies = [copies_of(f"file:{number}", weight) for number, weight in enumerate(weights)]
    assert copies_of_draws(draws, np.array(weights)).tolist() == copies


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), WEIGHTS, st.integers(1, 10_000)), min_size=1, max_size=30),
    st.integers(0, 200_000),
    st.randoms(),
)
def test_a_sample_is_the_largest_that_fits_in_any_order(documents, limit, random):
    def columns(documents):
        return [np.array(column) for column in zip(*documents, strict=True)]

    draws, weights, sizes = columns(documents)
    rate = sampling_rate(draws, weights, sizes, limit)

    def taken(rate):
        return int((copies_of_draws(draws, rate * weights) * sizes).sum())

    assert taken(rate) <= limit
    assert rate == 1 or taken(rate + 1e-12) > limit
    random.shuffle(documents)
    assert sampling_rate(*columns(documents), limit) == rate


@given(st.dictionaries(st.integers(0, 9), st.integers(10**6, 10**8), min_size=1), st.floats(1, 100))
def test_a_temperature_evens_out_the_shares_of_sources(sizes, temperature):
    weights = temperature_weights(sizes, temperature)
    largest = max(sizes, key=lambda source: sizes[source])
    assert weights[largest] == 1
    for source, size in sizes.items():  # the shares are size^(1/temperature), and nothing is left out
        share = weights[source] * size / sizes[largest]
        assert share == pytest.approx((size / sizes[largest]) ** (1 / temperature), rel=1e-4)
        assert weights[source] >= 1
    assert temperature_weights({0: 100, 1: 1, 2: 0}, 2) == {0: 1, 1: 10, 2: 1}
    assert temperature_weights({0: 7, 1: 3}, 1) == {0: 1, 1: 1}


def test_a_temperature_that_repeats_a_source_too_often_is_refused():
    with pytest.raises(UserError, match=r"takes entry 2 of corpus\.paths 10,000 times.* lower corpus\.temperature"):
        temperature_weights({3: 10**8, 4: 1}, 2)


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl*", "/**"])
def test_an_output_inside_the_corpus_is_no_part_of_it(tiny_config, corpus_folder, tmp_path, pattern):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for path in Path(corpus_folder).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "shards.text").mkdir()
    (folder / "shards.text" / "more.jsonl").write_text('{"text": "some more of it"}\n')
    (folder / "shards.partial.0123").mkdir()
    (folder / "shards.partial.0123" / "rejects.jsonl").write_text('{"text": "not of it"}\n')
    config = dataclasses.replace(
        tiny_config, output=str(folder / "shards"), corpus=CorpusConfig(paths=f"{folder}{pattern}")
    )
    names = [file.name for file in find_corpus_files(config.corpus, output=config.output)]
    assert "shards.text/more.jsonl" in names
    assert not [name for name in names if "partial" in name]
    run_task(config, "plan", None, no_progress)
    run_task(config, "map", None, no_progress)  # what a killed run leaves
    progress = NoProgress()
    first = build_shards(config, progress)
    assert not [note for note in progress.notes if "anew" in note]
    assert build_shards(config, no_progress) == dataclasses.replace(first, already_there=True)
    assert [file.name for file in find_corpus_files(config.corpus, output=config.output)] == names

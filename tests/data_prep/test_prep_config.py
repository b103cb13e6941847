import contextlib
import dataclasses
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.commands.arguments import prep_config
from data_prep.config import (
    CleaningConfig,
    CorpusConfig,
    DuplicatesConfig,
    MaskConfig,
    PrepConfig,
    VocabularyConfig,
    check_config,
    chunk_rows,
    masked_per_row,
    tokenizer_path,
)
from data_prep.contract.command_line import UserError
from data_prep.stages.vocabulary import build_vocabulary
from tests.data_prep.conftest import no_progress

DEFAULT = PrepConfig(output="shards")


def test_defaults_pass_and_resolve():
    check_config(DEFAULT)
    assert masked_per_row(DEFAULT) == 19
    assert chunk_rows(DEFAULT) == 1024
    assert chunk_rows(replace(DEFAULT, seq_length=512)) == 256
    assert tokenizer_path(replace(DEFAULT, output="a/b/")) == "a/b.tokenizer.json"
    assert tokenizer_path(replace(DEFAULT, tokenizer="t.json")) == "t.json"
    assert masked_per_row(replace(DEFAULT, mask=MaskConfig(per_row=20))) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 4}, "seq_length is 4"),
        ({"validation_fraction": -0.1}, "validation_fraction"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"mask": MaskConfig(probability=1.5)}, r"mask\.probability"),
        ({"mask": MaskConfig(per_row=127)}, r"expected 1 to 126"),
        ({"mask": MaskConfig(probability=0.001)}, r"mask\.per_row"),
        ({"mask": MaskConfig(variants=0)}, r"mask\.variants"),
        ({"rows_per_shard": 3000}, r"nearest that fits is 3072"),
        ({"vocabulary": VocabularyConfig(size=5)}, r"vocabulary\.size"),
        ({"vocabulary": VocabularyConfig(sample_bytes=0)}, r"vocabulary\.sample_bytes"),
        ({"corpus": CorpusConfig(temperature=0.5)}, r"corpus\.temperature is 0\.5: expected 1 to"),
        ({"corpus": CorpusConfig(temperature=float("nan"))}, r"corpus\.temperature"),
        ({"corpus": CorpusConfig(paths="a", weights=(1,), temperature=2)}, "both say how often .*give one of them"),
        ({"corpus": CorpusConfig(builtin_max_bytes=0)}, "builtin_max_bytes"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
    ],
)
def test_senseless_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(replace(DEFAULT, **changes))


@given(st.integers(1, 2**31), st.integers(1, 2**20))
def test_the_number_of_rows_that_is_advised_fits(rows, chunk):
    config = replace(DEFAULT, rows_per_shard=rows, chunk_rows=chunk)
    try:
        check_config(config)
    except UserError as error:
        check_config(replace(config, rows_per_shard=int(str(error).rsplit(" ", 1)[1])))


def test_an_output_that_would_replace_the_working_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"folder that you stand in, and would be replaced: .* \.\./here/shards"):
        check_config(replace(DEFAULT, output="../here"))
    check_config(replace(DEFAULT, output="../here/shards"))
    (tmp_path / "here/manifest.json").touch()
    check_config(replace(DEFAULT, output="../here"))


def test_a_tokenizer_that_cannot_be_written_is_refused_before_the_corpus_is_read(tmp_path):
    (tmp_path / "file").touch()
    config = replace(DEFAULT, tokenizer=str(tmp_path / "file/tokenizer.json"), corpus=CorpusConfig(paths="nowhere"))
    with pytest.raises(UserError, match=r"the folder of the tokenizer .* cannot be written"):
        build_vocabulary(config, no_progress)


def test_configuration_needs_no_heavy_library():
    code = "import sys, data_prep.config; sys.exit(any(m in sys.modules for m in ('numpy', 'tokenizers', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def with_number(config, names, number):
    """The configuration with a number in one field, given by the names that lead there."""
    inner = number if len(names) == 1 else with_number(getattr(config, names[0]), names[1:], number)
    return replace(config, **{names[0]: inner})


def numeric_fields(config=DEFAULT, names=()):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from numeric_fields(value, (*names, field.name))
        elif field.type in (int, float, int | None, float | None):
            yield ".".join((*names, field.name)), field.type in (float, float | None)


@pytest.mark.parametrize(("name", "takes_fractions"), numeric_fields())
def test_any_number_in_any_field_passes_or_is_refused_in_one_line(name, takes_fractions):
    fractions = [math.nan, math.inf, -math.inf, 1e308, -1e-300] if takes_fractions else []
    for number in (-1, 2**200, *fractions):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            check_config(with_number(DEFAULT, name.split("."), number))
    for number in (0, 1, *([1e-300] if takes_fractions else [2, 2**20])):
        with contextlib.suppress(UserError):
            check_config(with_number(DEFAULT, name.split("."), number))


def test_numbers_that_yaml_can_write_are_one_line_on_the_command_line():
    for option in (["--seed", ".nan"], ["--mask.probability", ".inf"], ["--corpus.weights", "[.inf]"]):
        with pytest.raises(UserError):
            prep_config(["--output", "x", "--corpus.paths", "a", *option], "shards", "Test")


@pytest.mark.parametrize("weights", [(float("inf"),), (float("nan"),), (-1.0,), (0.0,), (1e9,), (1.0, 1.0), ()])
def test_senseless_weights_are_refused(weights):
    with pytest.raises(UserError, match=r"corpus\.weights .*give one number from 0 to 1000 for each"):
        check_config(replace(DEFAULT, corpus=CorpusConfig(paths=("a",), weights=weights)))


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.1, float("nan"), float("inf")])
def test_senseless_thresholds_are_refused(threshold):
    with pytest.raises(UserError, match=r"near_threshold is .*: expected more than 0, at most 1"):
        check_config(replace(DEFAULT, duplicates=DuplicatesConfig(near_threshold=threshold)))


def test_senseless_lengths_of_shingles_are_refused():
    with pytest.raises(UserError, match=r"near_characters is 1: expected 2 to 100"):
        check_config(replace(DEFAULT, duplicates=DuplicatesConfig(near_threshold=0.5, near_characters=1)))
    with pytest.raises(UserError, match=r"near_characters needs duplicates\.near_threshold"):
        check_config(replace(DEFAULT, duplicates=DuplicatesConfig(near_characters=5)))


@pytest.mark.parametrize("output", [".", "/", "", "..", "a/..", "./", "a\0b", "x" * 300])
def test_an_output_without_a_name_is_one_line(output):
    with pytest.raises(UserError, match=r"--output '"):
        check_config(replace(DEFAULT, output=output))


def test_lengths_that_no_document_has_are_refused():
    with pytest.raises(UserError, match="no document could be kept"):
        check_config(replace(DEFAULT, cleaning=CleaningConfig(min_characters=2_000, max_characters=1_000)))

"""Names of options and parameters in training and in the export."""

import dataclasses
import math

import pytest

from pipeline.config import ModelConfig
from pipeline.export import NarrowBertConfig
from pipeline.export.folder import export_config
from pipeline.export.names import CONFIG_NAMES, TRAINING_ONLY, parameter_shapes
from pipeline.model.parameters import count_parameters

IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def options(**changes: object) -> dict[str, object]:
    return {**dataclasses.asdict(ModelConfig()), "vocab_size": 77, **changes}


def test_every_option_is_exported_or_for_training_only() -> None:
    assert {*CONFIG_NAMES, *TRAINING_ONLY} == set(options())
    assert not {*CONFIG_NAMES} & TRAINING_ONLY
    known = NarrowBertConfig().to_dict()
    assert [theirs for theirs in CONFIG_NAMES.values() if theirs not in known] == []


def test_an_option_that_the_export_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="missing or unknown to the export: sparsity"):
        export_config(options(sparsity=0.5), IDS)


@pytest.mark.parametrize("changes", [{}, {"narrow_kv": "grouped:4", "activation": "geglu", "position": "rope"}])
def test_the_export_has_every_parameter_once(changes: dict[str, object]) -> None:
    shapes = parameter_shapes(export_config(options(**changes), IDS))
    total = sum(math.prod(shape) for shape in shapes.values())
    assert total == count_parameters(ModelConfig(**changes), 77)  # type: ignore[arg-type]

"""torchao: quantised weights are used as they are, by narrow layers that would fold plain ones."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, TorchAoConfig

from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)
from tests.clients.layouts import each_layout, first_output, masked_inputs
from tests.tiny_exports import assert_close

torchao: Any = pytest.importorskip(
    "torchao.quantization", reason="torchao is not installed: pip install 'narrowbert[clients]'"
)

HAS_INT4 = importlib.util.find_spec("mslk") is not None
WEIGHT_ONLY = {
    "int8": torchao.Int8WeightOnlyConfig(),
    "int4": torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.granularity.PerGroup(32)),
}
CLASSES = [
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
]


def narrow_cls(model: Any) -> dict[str, torch.Tensor]:
    """Inputs by which every class folds: [CLS] alone."""
    is_classifier = isinstance(model, NarrowBertForSequenceClassification)
    inputs = masked_inputs()
    return inputs if is_classifier else inputs | {"narrow_positions": torch.zeros(3, 1, dtype=torch.long)}


def quantised(folder: Path, model_class: Any, config: Any) -> Any:
    model = model_class.from_pretrained(folder).eval()
    torchao.quantize_(model, config)
    encoder = getattr(model, "bert", model)
    assert type(encoder.encoder.layer[0].attention.self.key.weight) is not nn.Parameter
    return model


@each_layout
@pytest.mark.parametrize("weights", WEIGHT_ONLY)
def test_outputs_are_those_of_the_rounded_weights(exported: Callable[..., Path], kind: str, weights: str) -> None:
    folder = exported(kind, NarrowBertForSequenceClassification)
    model = quantised(folder, NarrowBertForSequenceClassification, WEIGHT_ONLY[weights])
    plain = NarrowBertForSequenceClassification.from_pretrained(folder).eval()
    inputs = narrow_cls(model)
    assert not torch.allclose(first_output(model, **inputs), first_output(plain, **inputs), atol=1e-3)
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and type(linear.weight) is not nn.Parameter:
            weight: Any = linear.weight
            plain.get_submodule(name).weight = nn.Parameter(weight.dequantize())
    assert_close(first_output(model, **inputs), first_output(plain, **inputs), 1e-4)


@pytest.mark.parametrize("model_class", CLASSES)
def test_int8_products_of_every_class_are_near(exported: Callable[..., Path], model_class: Any) -> None:
    folder = exported("shared_keys", model_class)
    model = quantised(folder, model_class, torchao.Int8DynamicActivationInt8WeightConfig())
    plain = model_class.from_pretrained(folder).eval()
    for inputs in (masked_inputs(), narrow_cls(model)):
        found, expected = first_output(model, **inputs), first_output(plain, **inputs)
        real = expected.abs() < 1e30  # not what padding holds
        assert nn.functional.cosine_similarity(found[real], expected[real], dim=0) > 0.98


def test_a_quantised_model_is_loaded_saved_and_loaded(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = exported("shared_keys", NarrowBertForSequenceClassification)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=TorchAoConfig(torchao.Int8WeightOnlyConfig())
    ).eval()
    expected = first_output(model, **masked_inputs())
    quantised_here = quantised(folder, NarrowBertForSequenceClassification, torchao.Int8WeightOnlyConfig())
    assert_close(expected, first_output(quantised_here, **masked_inputs()), 0.1)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert_close(first_output(again, **masked_inputs()), expected)


@pytest.mark.skipif(not HAS_INT4, reason="torchao's own int4 kernels are in the package mslk, which is not installed")
def test_int4_kernels(exported: Callable[..., Path]) -> None:
    folder = exported("shared_keys", NarrowBertForSequenceClassification)
    model = quantised(folder, NarrowBertForSequenceClassification, torchao.Int4WeightOnlyConfig(group_size=32))
    assert first_output(model, **masked_inputs()).isfinite().all()

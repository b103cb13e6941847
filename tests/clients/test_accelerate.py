"""accelerate: weights that are on another device, or on disk, until a layer is called."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from pipeline.export import NarrowBertForMaskedLM, NarrowBertForSequenceClassification, NarrowBertModel
from tests.clients.layouts import each_layout, first_output, masked_inputs
from tests.tiny_exports import assert_close

CLASSES = [NarrowBertForMaskedLM, NarrowBertForSequenceClassification]


def parts(model: Any) -> list[str]:
    """What a device map names: children of the encoder, and heads."""
    inside = [f"bert.{name}" for name, _ in model.bert.named_children()]
    return inside + [name for name, _ in model.named_children() if name != "bert"]


@each_layout
@pytest.mark.parametrize("model_class", CLASSES)
def test_offloaded_weights_give_the_same_outputs(
    exported: Callable[..., Path], tmp_path: Path, kind: str, model_class: Any
) -> None:
    folder = exported(kind, model_class)
    plain = model_class.from_pretrained(folder).eval()
    expected = first_output(plain, **masked_inputs())
    narrow = "bert.encoder_narrow" if plain.bert.encoder_narrow.layer else "bert.encoder"
    # Embeddings and decoder share a weight: a map that parts them is refused, as BERT's is.
    for number, names in enumerate([{narrow}, {"bert.embeddings", "cls"}, {*parts(plain)} - {"bert.encoder"}]):
        places = {name: "disk" if name in names else "cpu" for name in parts(plain)}
        model = model_class.from_pretrained(folder, device_map=places, offload_folder=tmp_path / str(number))
        assert any(parameter.is_meta for parameter in model.parameters())
        for _ in range(2):
            assert_close(first_output(model, **masked_inputs()), expected)


@each_layout
def test_a_model_that_is_offloaded_later_gives_the_same_outputs(
    exported: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    folder = exported(kind, NarrowBertForSequenceClassification)
    offload: dict[str, Callable[[Any], Any]] = {
        "cpu": lambda model: cpu_offload(model, execution_device=torch.device("cpu")),
        "disk": lambda model: disk_offload(model, str(tmp_path), execution_device=torch.device("cpu")),
    }
    expected = first_output(NarrowBertForSequenceClassification.from_pretrained(folder).eval(), **masked_inputs())
    for place in offload.values():
        model = place(NarrowBertForSequenceClassification.from_pretrained(folder).eval())
        assert all(parameter.is_meta for parameter in model.parameters())
        assert_close(first_output(model, **masked_inputs()), expected)


def test_a_device_map_made_by_accelerate_keeps_layers_whole(exported: Callable[..., Path]) -> None:
    folder = exported("shared_keys", NarrowBertModel)
    model = NarrowBertModel.from_pretrained(folder, device_map="auto").eval()
    expected = first_output(NarrowBertModel.from_pretrained(folder).eval(), **masked_inputs())
    assert_close(first_output(model, **masked_inputs()), expected)


TWO_DEVICES = """
import torch
from accelerate import hooks
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pipeline.export import AUTO_CLASSES, NarrowBertForQuestionAnswering, NarrowBertForSequenceClassification
from tests.clients.layouts import LAYOUTS
from tests.tiny_exports import tiny_config

_setup_privateuseone_for_python_backend("two")
hooks.set_module_tensor_to_device = lambda *args, **options: None  # the weights below are where they belong


def place(module, device):
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty(tensor.shape, device=device))


def spread(model, on_second):
    encoder = getattr(model, "bert", model)
    prefix = "" if encoder is model else "bert."
    layers = [f"{prefix}{side}.layer.{number}" for side in ("encoder", "encoder_narrow")
              for number in range(len(getattr(encoder, side).layer))]
    norms = [f"{prefix}{name}" for name in ("frozen_norm", "final_norm", "pooler") if getattr(encoder, name)]
    heads = [name for name, _ in model.named_children() if encoder is not model and name != "bert"]
    last = {*layers[len(layers) - on_second:], *norms, *heads} - {f"{prefix}frozen_norm"}
    places = {name: f"two:{int(name in last)}" for name in [f"{prefix}embeddings", *layers, *norms, *heads]}
    for name, device in places.items():
        place(model.get_submodule(name), device)
    hooks.attach_align_device_hook_on_blocks(
        model, execution_device=places | {"": "two:0"}, offload=dict.fromkeys(places, False)
    )


def labels_of(model_class):
    tensor = torch.ones(2, 3, dtype=torch.long, device="two:0")
    if model_class is NarrowBertForQuestionAnswering:
        return {"start_positions": tensor[:, 0], "end_positions": tensor[:, 0]}
    if model_class is NarrowBertForSequenceClassification:
        return {"labels": tensor[:, 0]}
    return {} if model_class is AUTO_CLASSES["AutoModel"] else {"labels": tensor}


for layout, options in LAYOUTS.values():
    for model_class in AUTO_CLASSES.values():
        for on_second in (0, 1, 2):  # so many layers are on the second device
            with FakeTensorMode(allow_non_fake_inputs=True):
                model = model_class(tiny_config(layout, **options)).eval()
                encoder = getattr(model, "bert", model)
                encoder.unpad = False  # packing asks for numbers
                spread(model, on_second)
                ids = torch.ones(2, 12, dtype=torch.long, device="two:0")
                positions = torch.zeros(2, 3, dtype=torch.long, device="two:0")
                found = model(ids, attention_mask=torch.ones_like(ids), narrow_positions=positions,
                              **labels_of(model_class))
                assert found[0].device == found[-1].device == torch.device("two:0")
"""


@pytest.mark.slow
def test_layers_on_two_devices_meet_no_tensor_of_the_other() -> None:
    """Devices and shapes without numbers, as no second device is here: a product over both would be refused."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", TWO_DEVICES], check=True, timeout=300)

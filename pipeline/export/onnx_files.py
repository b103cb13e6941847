"""A model folder's networks as ONNX files, checked against torch: ``narrowbert onnx DIR``.

Shapes: B texts, S longest of them in tokens, P most positions asked for, H hidden size, V vocabulary, C labels.
"""

import contextlib
import dataclasses
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from data_prep.contract.command_line import UserError
from data_prep.contract.files import process_name
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import pooling_of
from pipeline.export.model_folder import open_config, open_model
from pipeline.export.modeling_narrowbert import NarrowBertModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-4
"""Largest difference to torch that is put down to rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """One file."""

    name: str
    auto_class: str
    output: str
    has_positions: bool = False
    """Another input, ``narrow_positions`` [B, P]."""


FILL_MASK = _Network(name="fill-mask", auto_class="AutoModelForMaskedLM", output="logits", has_positions=True)
ENCODER = _Network(name="encoder", auto_class="AutoModel", output="embeddings")
CLASSIFIER = _Network(name="classifier", auto_class="AutoModelForSequenceClassification", output="logits")
_NETWORKS = {
    "NarrowBertForMaskedLM": (FILL_MASK, ENCODER),
    "NarrowBertModel": (ENCODER,),
    "NarrowBertForSequenceClassification": (CLASSIFIER,),
}


class _Graph(nn.Module):
    """A model as a function of tensors, in the form that is exported."""

    def __init__(self, model: PreTrainedModel, network: _Network, *, takes_mean: bool) -> None:
        super().__init__()
        self.model = model
        self.network = network
        self.takes_mean = takes_mean

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        narrow_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if self.network.has_positions:
            return self.model(**inputs, narrow_positions=narrow_positions).logits
        if self.network is ENCODER and not self.takes_mean:
            assert isinstance(self.model, NarrowBertModel)
            return self.model.cls_states(**inputs)
        outputs = self.model(**inputs)
        if self.network.output == "logits":
            return outputs.logits
        hidden_BSH = outputs.last_hidden_state
        weights_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSH.dtype)
        return (hidden_BSH * weights_BS1).sum(1) / weights_BS1.sum(1)


def write_onnx(folder: Path) -> list[tuple[Path, float]]:
    """Write ``folder/onnx/*.onnx``, with any batch and length.

    A masked-LM export becomes ``fill-mask.onnx`` (logits [B, P, V] of ``narrow_positions`` [B, P]) and ``encoder.onnx``
    (the last hidden state of [CLS], or the mean over tokens where the export says so, [B, H]), a sentence classifier
    ``classifier.onnx`` (logits [B, C]). Inputs are ``input_ids``, ``attention_mask`` and ``token_type_ids``, [B, S]
    int64.

    Returns:
        Each file with its largest difference to torch, in onnxruntime, over batches of other shapes than the traced.

    Raises:
        UserError: no model folder, one of another kind or that cannot be written, packages that are missing, results
            that differ.
    """
    try:
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise UserError(f"no package {error.name}: pip install 'narrowbert[onnx]'") from error
    del onnxruntime, onnxscript
    config = open_config(folder)
    networks = _NETWORKS.get((config.architectures or [""])[0])
    if networks is None:
        raise UserError(f"{folder} is neither a masked-LM export nor a sentence classifier: {config.architectures}")
    assert isinstance(config, NarrowBertConfig), "no other type is opened"
    partial = folder / f".onnx.{process_name()}.partial"
    try:
        return _write_networks(folder, partial, networks, config)
    except OSError as error:
        raise UserError(f"cannot write {folder / 'onnx'}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_networks(
    folder: Path, partial: Path, networks: Sequence[_Network], config: NarrowBertConfig
) -> list[tuple[Path, float]]:
    """Each file gets its name when it is whole and gives torch's numbers; one that was there is there until then."""
    partial.mkdir()
    (folder / "onnx").mkdir(exist_ok=True)
    written = []
    for network in networks:
        model: Any = open_model(folder, network.auto_class)
        encoder = getattr(model, "bert", model)
        # Whether folding pays would depend on shapes that the file leaves open.
        encoder.encoder_narrow.fold = not network.has_positions
        takes_mean = network is ENCODER and pooling_of(folder) == "mean"
        graph = _Graph(model, network, takes_mean=takes_mean).eval()
        path = partial / f"{network.name}.onnx"
        _export(graph, path, config)
        difference = _compare(graph, path, config)
        if difference > TOLERANCE:
            raise UserError(f"{path.name} differs from torch by {difference:.1e}: not written")
        for file in sorted(partial.iterdir()):  # weights of more than 2 GB are in a file of their own
            file.replace(folder / "onnx" / file.name)
        written.append((folder / "onnx" / path.name, difference))
    return written


def example_inputs(network: _Network, config: NarrowBertConfig, *lengths: int) -> dict[str, torch.Tensor]:
    """Random texts of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(len(lengths))
    mask_BS = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    ids_BS = torch.randint(config.vocab_size, mask_BS.shape, generator=generator)
    inputs = {"input_ids": ids_BS * mask_BS, "attention_mask": mask_BS, "token_type_ids": torch.zeros_like(mask_BS)}
    if network.has_positions:
        count = 1 + len(lengths)
        inputs["narrow_positions"] = torch.randint(min(lengths), (len(lengths), count), generator=generator)
    return inputs


def _export(graph: _Graph, path: Path, config: NarrowBertConfig) -> None:
    batch = torch.export.Dim("batch", min=1, max=65_536)
    length = torch.export.Dim("length", min=2, max=config.max_position_embeddings)
    inputs = example_inputs(graph.network, config, 7, 5, 6)
    shapes: dict[str, Any] = {name: {0: batch, 1: length} for name in inputs}
    if graph.network.has_positions:
        shapes["narrow_positions"] = {
            0: batch,
            1: torch.export.Dim("positions", min=1, max=config.max_position_embeddings),
        }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph, kwargs=inputs, dynamo=True, dynamic_shapes=shapes, input_names=list(inputs),
            output_names=[graph.network.output], verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path)


def _compare(graph: _Graph, path: Path, config: NarrowBertConfig) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    longest = min(config.max_position_embeddings, 64)
    for lengths in ((longest,), (3, 9, 4, 9), (2, 2)):
        inputs = example_inputs(graph.network, config, *lengths)
        with torch.no_grad():
            expected = graph(**inputs)
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        differences.append(float((torch.from_numpy(found) - expected).abs().max()))
    return max(differences)

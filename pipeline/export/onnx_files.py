"""A model folder's networks as ONNX files, checked against torch: ``narrowbert onnx DIR``.

``onnx/model.onnx`` is the file that text-embeddings-inference, sentence-transformers and optimum look for, with their
names of inputs and outputs.

Shapes: B texts, S longest of them in tokens, P most positions asked for, H hidden size, V vocabulary, C labels.
"""

import contextlib
import dataclasses
import io
import logging
import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from data_prep.contract.command_line import UserError
from data_prep.contract.files import process_name
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import pooling_of
from pipeline.export.model_folder import open_config, open_model
from pipeline.export.modeling_narrowbert import NarrowBertModel
from pipeline.export.plain.forms import FORMS

TOLERANCE = 1e-4
"""Largest difference to torch that is put down to rounding."""
EMBEDDING, STATES, LOGITS = "sentence_embedding", "last_hidden_state", "logits"
"""Outputs, by the names that servers ask for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """One file."""

    name: str
    auto_class: str
    inputs: tuple[str, ...]
    """Among ``input_ids``, ``attention_mask``, ``token_type_ids``, each [B, S], and ``narrow_positions`` [B, P]."""
    outputs: tuple[str, ...]

    @property
    def has_positions(self) -> bool:
        """Whether it is told which positions to compute."""
        return "narrow_positions" in self.inputs


FILL_MASK = "fill-mask"
"""Name of the network that is told its positions."""


def networks(folder: Path, config: PreTrainedConfig) -> list[Network]:
    """What a folder becomes, by its class and by how it makes embeddings.

    Raises:
        UserError: no network is made of such a class.
    """
    is_own = isinstance(config, NarrowBertConfig)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    if not is_own:
        inputs = tuple(name for name in inputs if name in FORMS[config.model_type].inputs)
    kind = (config.architectures or [""])[0].rpartition("Bert")[2]
    if kind == "ForSequenceClassification":
        return [
            Network(name="model", auto_class="AutoModelForSequenceClassification", inputs=inputs, outputs=(LOGITS,))
        ]
    if kind not in ("ForMaskedLM", "Model"):
        raise UserError(f"{folder} is neither a masked-LM export nor a sentence classifier: {config.architectures}")
    pooling = pooling_of(folder)
    if is_own and pooling != "mean":
        outputs: tuple[str, ...] = (EMBEDDING,)  # of [CLS]: no other state is computed for it
    else:
        outputs = (EMBEDDING, STATES) if pooling else (STATES,)
    encoder = Network(name="model", auto_class="AutoModel", inputs=inputs, outputs=outputs)
    if not is_own or kind == "Model":
        return [encoder]
    asked = (*inputs, "narrow_positions")
    return [Network(name=FILL_MASK, auto_class="AutoModelForMaskedLM", inputs=asked, outputs=(LOGITS,)), encoder]


class _Graph(nn.Module):
    """A model as a function of tensors, in the form that is exported."""

    def __init__(self, model: PreTrainedModel, network: Network, *, takes_mean: bool) -> None:
        super().__init__()
        self.model = model
        self.network = network
        self.takes_mean = takes_mean

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        narrow_positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The network's outputs, in their order."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        optional = {"token_type_ids": token_type_ids, "narrow_positions": narrow_positions}
        inputs |= {name: tensor for name, tensor in optional.items() if tensor is not None}
        if self.network.outputs == (EMBEDDING,):
            assert isinstance(self.model, NarrowBertModel)
            return (self.model.cls_states(**inputs),)
        outputs = self.model(**inputs)
        if self.network.outputs == (LOGITS,):
            return (outputs.logits,)
        hidden_BSH = outputs.last_hidden_state
        found = {STATES: hidden_BSH, EMBEDDING: hidden_BSH[:, 0]}
        if self.takes_mean:
            weights_BS1 = attention_mask.unsqueeze(-1).to(hidden_BSH.dtype)
            found[EMBEDDING] = (hidden_BSH * weights_BS1).sum(1) / weights_BS1.sum(1)
        return tuple(found[name] for name in self.network.outputs)


def write_onnx(folder: Path) -> list[tuple[Path, float]]:
    """Write ``folder/onnx/*.onnx``, with any batch and length.

    ``model.onnx`` of a sentence classifier gives ``logits`` [B, C]. That of an encoder or of a masked-LM export gives
    ``sentence_embedding`` [B, H], the last hidden state of [CLS] or the mean over tokens as the export says, and
    ``last_hidden_state`` [B, S, H] where all of it is computed anyway: for the mean, and in a plain BERT or ModernBERT,
    which has no ``sentence_embedding`` where nothing says how it is made. A masked-LM export in our own form becomes
    ``fill-mask.onnx`` as well (``logits`` [B, P, V] of ``narrow_positions`` [B, P]). Inputs are ``input_ids``,
    ``attention_mask`` and, but for a ModernBERT, ``token_type_ids``, [B, S] int64.

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
    config = open_config(folder, also=FORMS)
    wanted = networks(folder, config)
    partial = folder / f".onnx.{process_name()}.partial"
    try:
        return _write_networks(folder, partial, wanted, config)
    except OSError as error:
        raise UserError(f"cannot write {folder / 'onnx'}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_networks(
    folder: Path, partial: Path, wanted: Sequence[Network], config: PreTrainedConfig
) -> list[tuple[Path, float]]:
    """Each file gets its name when it is whole and gives torch's numbers; one that was there is there until then."""
    partial.mkdir()
    (folder / "onnx").mkdir(exist_ok=True)
    written = []
    for network in wanted:
        model: Any = open_model(folder, network.auto_class)
        if isinstance(config, NarrowBertConfig):
            # Whether folding pays would depend on shapes that the file leaves open.
            getattr(model, "bert", model).encoder_narrow.fold = not network.has_positions
        graph = _Graph(model, network, takes_mean=pooling_of(folder) == "mean").eval()
        path = partial / f"{network.name}.onnx"
        _export(graph, path, config)
        difference = _compare(graph, path, config)
        if difference > TOLERANCE:
            raise UserError(f"{path.name} differs from torch by {difference:.1e}: not written")
        for file in sorted(partial.iterdir()):  # weights of more than 2 GB are in a file of their own
            file.replace(folder / "onnx" / file.name)
        written.append((folder / "onnx" / path.name, difference))
    return written


def example_inputs(network: Network, config: PreTrainedConfig, *lengths: int) -> dict[str, torch.Tensor]:
    """Random texts of these lengths, padded to the longest."""
    generator = torch.Generator().manual_seed(len(lengths))
    mask_BS = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    ids_BS = torch.randint(config.vocab_size, mask_BS.shape, generator=generator)
    inputs = {"input_ids": ids_BS * mask_BS, "attention_mask": mask_BS, "token_type_ids": torch.zeros_like(mask_BS)}
    if network.has_positions:
        count = 1 + len(lengths)
        inputs["narrow_positions"] = torch.randint(min(lengths), (len(lengths), count), generator=generator)
    return {name: inputs[name] for name in network.inputs}


def _export(graph: _Graph, path: Path, config: PreTrainedConfig) -> None:
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
            output_names=list(graph.network.outputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path)


def _compare(graph: _Graph, path: Path, config: PreTrainedConfig) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    longest = min(config.max_position_embeddings, 64)
    for lengths in ((longest,), (3, 9, 4, 9), (2, 2)):
        inputs = example_inputs(graph.network, config, *lengths)
        with torch.no_grad():
            expected = graph(**inputs)
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        for name, theirs, ours in zip(graph.network.outputs, found, expected, strict=True):
            distance = (torch.from_numpy(theirs) - ours).abs()
            if name == STATES:  # those of padding are whatever came out
                distance = distance[inputs["attention_mask"].bool()]
            differences.append(float(distance.nan_to_num(nan=math.inf).max()))
    return max(differences)

"""A BERT, NarrowBERT or ModernBERT of transformers on disk, read without a pickle."""

import dataclasses
import re
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.model_folder import Json, read_headers, read_settings, weight_files
from pipeline.export.names import TIED
from pipeline.initialisation import modernbert
from pipeline.initialisation.stored_tensor import StoredTensor
from pipeline.layout import Layout, parse_layout

_BUFFERS = {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
"""Counted, not learned; older versions of transformers stored them."""

FLOATING = {"F64", "F32", "F16", "BF16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedSource:
    """A checkpoint on disk: what it holds, no weight read yet."""

    folder: Path
    """Where it is."""
    config: dict[str, Json]
    """Its config.json."""
    tensors: dict[str, StoredTensor]
    """By BertForMaskedLM's names, whichever way the file spells them."""

    def setting(self, key: str) -> Json:
        """A value of config.json, or BERT's default where there is none."""
        return self.config.get(key, getattr(NarrowBertConfig(), key))

    @property
    def layout(self) -> Layout:
        """Its layout: plain BERT, ``full_length_layers`` and the rest narrow (the authors), or the text (our exports).

        Raises:
            UserError: config.json does not say it.
        """
        path = self.folder / "config.json"
        if "layout" in self.config:
            try:
                return parse_layout(str(self.config["layout"]))
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error
        is_narrow = any(name.startswith("bert.encoder_narrow.") for name in self.tensors)
        layers = self.config.get("num_hidden_layers", 12)
        full = self.config.get("full_length_layers", None if is_narrow else layers)
        if not isinstance(full, int) or not isinstance(layers, int) or not 0 <= full <= layers or not layers:
            raise UserError(
                f"{path} has full_length_layers {full} and num_hidden_layers {layers}: put in how many layers are "
                "full (bert.encoder) and how many there are together with the narrow ones (bert.encoder_narrow)"
            )
        return Layout(full="sf" * full, narrow="sf" * (layers - full))


def open_source(folder: Path) -> PretrainedSource:
    """Read configuration, names and shapes of a checkpoint of transformers.

    Raises:
        UserError: no such checkpoint, a damaged one, or one that is pickled.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: download the model first, with all its files, and name its folder")
    config = read_settings(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for key, (shape, dtype) in read_headers(path).items():
            name = _bert_name(key)
            if name in tensors:
                raise UserError(f"{folder} holds {name} twice: as {tensors[name].key} and as {key}")
            tensors[name] = StoredTensor(path=path, key=key, shape=shape, dtype=dtype)
    if config.get("model_type") == modernbert.MODEL_TYPE:
        config, tensors = modernbert.config_of(folder / "config.json", config), modernbert.tensors_of(tensors)
    for tied, name in TIED.items():
        if tied in tensors and name not in tensors:
            tensors[name] = tensors.pop(tied)
    return PretrainedSource(
        folder=folder, config=config, tensors={k: v for k, v in tensors.items() if k not in _BUFFERS}
    )


def _bert_name(key: str) -> str:
    """BertForMaskedLM's name: BertModel's have no prefix, and BERT's first checkpoints say gamma and beta."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))
    is_bare = name.startswith(("embeddings.", "encoder.", "encoder_narrow.", "pooler."))
    return f"bert.{name}" if is_bare else name

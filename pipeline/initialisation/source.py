"""A BERT or NarrowBERT of transformers on disk, read without a pickle."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from data_prep.contract.command_line import UserError
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import TIED
from pipeline.layout import Layout, parse_layout

_BUFFERS = {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
"""Counted, not learned; older versions of transformers stored them."""

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

FLOATING = {"F64", "F32", "F16", "BF16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    path: Path
    """The file."""
    key: str
    """Its name there."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: str
    """safetensors' name of its type."""

    def read(self) -> torch.Tensor:
        """The tensor in fp32."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.key).float()


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
    config = _read_json(folder / "config.json")
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        for key, stored in _headers(path).items():
            name = _bert_name(key)
            if name in tensors:
                raise UserError(f"{folder} holds {name} twice: as {tensors[name].key} and as {key}")
            tensors[name] = stored
    for tied, name in TIED.items():
        if tied in tensors and name not in tensors:
            tensors[name] = tensors.pop(tied)
    return PretrainedSource(
        folder=folder, config=config, tensors={k: v for k, v in tensors.items() if k not in _BUFFERS}
    )


def _read_json(path: Path) -> dict[str, Json]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}: it holds no model of transformers") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no keys")
    return content


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
            raise UserError(f"{index} is damaged: its weight_map does not name files beside it")
        return [folder / name for name in sorted({str(name) for name in names.values()})]
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled:
        raise UserError(
            f"{pickled[0]} is a pickle, not read here; convert it with: python -c 'import pathlib, sys, torch, "
            "safetensors.torch as s; p = pathlib.Path(sys.argv[1]); s.save_file({k: v.clone().contiguous() for f in "
            'p.glob("pytorch_model*.bin") for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}, '
            f'p / "model.safetensors")\' {shlex.quote(str(folder))}'
        )
    raise UserError(f"{folder} has no model.safetensors")


def _headers(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file by its name there."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - a handle is no dictionary
            return {
                key: StoredTensor(path=path, key=key, shape=tuple(part.get_shape()), dtype=part.get_dtype())
                for key, part in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _bert_name(key: str) -> str:
    """BertForMaskedLM's name: BertModel's have no prefix, and BERT's first checkpoints say gamma and beta."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key))
    is_bare = name.startswith(("embeddings.", "encoder.", "encoder_narrow.", "pooler."))
    return f"bert.{name}" if is_bare else name

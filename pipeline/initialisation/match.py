"""Which tensor of a source becomes which of a model, and what does not fit."""

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from data_prep.contract.command_line import UserError
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.names import CONFIG_NAMES, TIED, State, parameter_shapes, sublayers
from pipeline.initialisation.source import FLOATING, PretrainedSource
from pipeline.initialisation.tokenizer import different_tokenizer
from pipeline.layout import Layout, parse_layout, without_windows
from pipeline.model.parameters import COMPUTING_OPTIONS, computes_with

_WORDS = "bert.embeddings.word_embeddings.weight"
_POSITIONS = "bert.embeddings.position_embeddings.weight"
_LAYER = re.compile(r"(bert\.encoder(?:_narrow)?\.layer\.[0-9]+)\.(.+)")
_NAMES_SHOWN = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """Which tensor of a checkpoint goes where in the exported form of a model."""

    source: PretrainedSource
    """The checkpoint."""
    config: NarrowBertConfig
    """The model."""
    origins: dict[str, str]
    """Name in the model -> name in the checkpoint, for all that are loaded."""
    kept: list[str]
    """Names in the checkpoint of what stays as the model has it."""
    left_out: list[str]
    """Tensors of the checkpoint that are not used."""
    differs: list[str]
    """Keys of config.json that differ, and ``tokenizer``, by permission."""

    def read(self) -> tuple[State, State]:
        """The export's parameters in fp32, and a bool of each element: is it read, or a zero for what is kept."""
        state: State = {}
        is_read: State = {}
        for name, shape in parameter_shapes(self.config).items():
            origin = self.origins.get(name)
            state[name] = torch.zeros(shape) if origin is None else self.source.tensors[origin].read()[: shape[0]]
            is_read[name] = torch.full(shape, origin is not None)
        return state, is_read

    def describe(self) -> list[str]:
        """Lines for the log."""
        source, length = self.source, self.config.max_position_embeddings
        lines = [
            f"starting from {source.folder}: {len(self.origins)} tensors; layout {source.layout} there, "
            f"{self.config.layout} here"
        ]
        num_positions = source.tensors[_POSITIONS].shape[0] if _POSITIONS in self.origins.values() else length
        if num_positions > length:
            lines.append(f"of the {num_positions} position embeddings there the first {length} are used")
        for names, text in [
            (self.kept, "as initialised, not from there"),
            (self.left_out, "left out"),
            (self.differs, "different by permission"),
        ]:
            if names:
                lines.append(f"{text}: {', '.join(names)}")
        return lines


def match(source: PretrainedSource, config: NarrowBertConfig, allow: Sequence[str], tokenizer_path: Path) -> Match:
    """Find every parameter of a model in a checkpoint.

    Args:
        config: of the model.
        allow: names, or patterns with ``*``, of what may differ.
        tokenizer_path: the model's ``tokenizer.json``, or a BERT's vocab.txt.

    Raises:
        UserError: all that differs and is not in ``allow``; an entry of ``allow`` that nothing differs in.
    """
    stored = source.tensors.get(_WORDS)
    if stored is not None and stored.shape[0] != config.vocab_size:
        raise UserError(
            f"{source.folder} has a vocabulary of {stored.shape[0]}, the tokenizer {tokenizer_path} "
            f"{config.vocab_size}: make the shards with the tokenizer of that model (narrowbert-prep --tokenizer)"
        )
    settings = {**_different_settings(source, config), **different_tokenizer(source.folder, tokenizer_path)}
    _refuse(source.folder, {"different": settings}, allow)
    origins = origins_of(source.layout, config)
    shapes = {origins[name]: shape for name, shape in parameter_shapes(config).items()}
    problems = _different_tensors(source, shapes)
    _refuse(source.folder, problems, allow)
    for pattern in allow:
        if not any(fnmatch.fnmatchcase(name, pattern) for names in (settings, *problems.values()) for name in names):
            raise UserError(f"allow names {pattern}, but nothing of that name differs in {source.folder}: leave it out")
    kept = {*problems["missing"], *problems["of another shape"], *problems["not of floating point"]}
    return Match(
        source=source,
        config=config,
        origins={name: origin for name, origin in origins.items() if origin not in kept},
        kept=sorted(kept),
        left_out=sorted({*problems["unexpected"], *problems["not tied to the embedding or bias it stands for"]}),
        differs=sorted(settings),
    )


def _refuse(folder: Path, problems: dict[str, dict[str, str]], allow: Sequence[str]) -> None:
    """Raise what is not allowed: by kind, name -> the name and what is wrong."""
    parts = []
    for kind, by_name in problems.items():
        texts = [text for name, text in by_name.items() if not any(fnmatch.fnmatchcase(name, p) for p in allow)]
        if texts:
            more = f" and {len(texts) - _NAMES_SHOWN} more" if len(texts) > _NAMES_SHOWN else ""
            parts.append(f"{kind}: {', '.join(texts[:_NAMES_SHOWN])}{more}")
    if parts:
        raise UserError(
            f"{folder} does not fit the model ({'; '.join(parts)}): change the model's options, or name what may "
            "differ in init.allow (convert: --allow); * stands for any text"
        )


def _different_settings(source: PretrainedSource, config: NarrowBertConfig) -> dict[str, str]:
    different = {}
    kind = source.config.get("model_type", "bert")
    if kind not in ("bert", NarrowBertConfig.model_type):
        different["model_type"] = f"model_type {kind}, which is neither bert nor {NarrowBertConfig.model_type}"
    if source.config.get("is_decoder"):
        different["is_decoder"] = "is_decoder true, which no layout is"
    for ours in COMPUTING_OPTIONS:
        key = CONFIG_NAMES[ours]
        there, here = source.setting(key), getattr(config, key)
        if there != here and computes_with(ours, config.position_embedding_type, parse_layout(config.layout)):
            different[key] = f"{key} {there} there, model.{ours} {here} here"
    # To narrow a BERT is what this is for; to narrow a NarrowBERT elsewhere may be a default that nobody chose.
    there, here = source.layout, parse_layout(config.layout)
    if there.narrow and there != here:
        different["layout"] = f"layout {there} there, model.layout {here} here"
    return different


def origins_of(there: Layout, config: NarrowBertConfig) -> dict[str, str]:
    """Name of each parameter of the export -> its name in a checkpoint with the layout ``there``.

    A pre-norm model that is narrowed for the first time has a norm of the frozen state, which its source has not. It
    takes that of its first narrow attention: that layer's keys and values then are what they were in the source.

    Raises:
        UserError: the layouts have not the same numbers of sublayers.
    """
    here = parse_layout(config.layout)
    counts = [[without_windows(side.full + side.narrow).count(letter) for letter in "sf"] for side in (there, here)]
    if counts[0] != counts[1]:
        raise UserError(
            f"model.layout {here} has {counts[1][0]} s or w and {counts[1][1]} f, the checkpoint {counts[0][0]} s or w "
            f"and {counts[0][1]} f: take a layout with as many, such as {there.control()} or with a ':' in it"
        )
    layers: dict[tuple[str, str], str] = {}
    for letter in "sf":
        ours, theirs = (
            [name for _, name, kind in sublayers(str(side)) if without_windows(kind) == letter]
            for side in (here, there)
        )
        layers.update({(name, letter): origin for name, origin in zip(ours, theirs, strict=True)})
    origins = {}
    for name in parameter_shapes(config):
        found = _LAYER.fullmatch(name)
        origins[name] = name
        if found is not None:
            letter = "s" if found[2].startswith("attention.") else "f"
            origins[name] = f"{layers[found[1], letter]}.{found[2]}"
    if "s" in here.narrow and "s" not in there.narrow:
        first = next(name for name in layers if name[0].startswith("bert.encoder_narrow.") and name[1] == "s")
        for name in origins:
            if name.startswith("bert.frozen_norm."):
                origins[name] = f"{layers[first]}.attention.output.LayerNorm.{name.rpartition('.')[2]}"
    return origins


def _different_tensors(source: PretrainedSource, expected: dict[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """What is wrong, by kind; ``expected`` holds the checkpoint's names."""
    tensors = source.tensors
    found = {name: tensors[name] for name in expected if name in tensors}
    return {
        "missing": {name: name for name in expected if name not in tensors},
        "unexpected": {name: name for name in sorted(tensors.keys() - expected.keys() - TIED.keys())},
        "of another shape": {
            name: f"{name} {list(stored.shape)} instead of {list(expected[name])}"
            for name, stored in found.items()
            if not _fits(name, stored.shape, expected[name])
        },
        "not of floating point": {name: name for name, stored in found.items() if stored.dtype not in FLOATING},
        "not tied to the embedding or bias it stands for": {
            tied: tied
            for tied, name in TIED.items()
            if tied in tensors and not torch.equal(tensors[tied].read(), tensors[name].read())
        },
    }


def _fits(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    # Shorter rows use the first positions alone, so a longer table computes the same.
    is_longer_table = name == _POSITIONS and shape[1:] == expected[1:] and shape[0] > expected[0]
    return shape == expected or is_longer_table

"""A pretrained BERT or NarrowBERT written in the exported form, without training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import UserError
from data_prep.contract.tokenizer import load_tokenizer, special_ids
from pipeline.config import ModelConfig
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import check_output, export_config, write_export
from pipeline.export.names import CONFIG_NAMES, from_transformers
from pipeline.initialisation.match import match
from pipeline.initialisation.source import Json, PretrainedSource, open_source
from pipeline.layout import parse_layout


def export_pretrained(
    folder: Path,
    output: Path,
    *,
    layout: str | None,
    tokenizer_path: Path | None,
    allow: Sequence[str],
    pooling: str | None = None,
    model_type: str = NarrowBertConfig.model_type,
) -> list[str]:
    """Export a BERT of transformers or a NarrowBERT of its authors, as it is.

    Args:
        folder: holds config.json and model.safetensors.
        layout: of the export; the checkpoint's own where it is None.
        tokenizer_path: a tokenizer.json, or a BERT's vocab.txt; where it is None, the one in ``folder``.
        allow: names or patterns of tensors to leave out, and of what else may differ.
        pooling, model_type: as in ``write_export``.

    Returns:
        Lines that say what was taken from the checkpoint and what differs.

    Raises:
        UserError: no such checkpoint, one that does not fit, or ``output`` exists already.
    """
    check_output(output)
    source = open_source(folder)
    tokenizer_path = tokenizer_of(folder, tokenizer_path)
    ids = special_ids(load_tokenizer(tokenizer_path))
    model_config = model_config_of(source, layout)
    matched = match(source, export_config(model_config, ids), allow, tokenizer_path)
    if matched.kept:
        raise UserError(f"{folder} lacks what a masked-LM model needs: {', '.join(matched.kept)}")
    state, _ = matched.read()
    remarks = write_export(
        from_transformers(state, matched.config),
        model_config=model_config,
        tokenizer_path=tokenizer_path,
        special_ids=ids,
        facts={
            "layout": model_config["layout"],
            "weights": f"{folder.resolve().name} (layout {source.layout}), as they are",
        },
        output=output,
        pooling=pooling,
        model_type=model_type,
    )
    return [*matched.describe(), *remarks]


def tokenizer_of(folder: Path, named: Path | None = None) -> Path:
    """The tokenizer of a model: ``named``, or its tokenizer.json or vocab.txt.

    Raises:
        UserError: there is none.
    """
    names = ("tokenizer.json", "vocab.txt")
    path = named or next((folder / n for n in names if (folder / n).is_file()), folder / names[0])
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}: name a tokenizer.json or vocab.txt with --tokenizer")
    return path


def model_config_of(source: PretrainedSource, layout: str | None) -> dict[str, Json]:
    """A checkpoint's configuration as the training model's."""
    config: dict[str, Json] = dataclasses.asdict(ModelConfig())
    config |= {ours: source.setting(theirs) for ours, theirs in CONFIG_NAMES.items() if ours != "layout"}
    try:
        config["layout"] = str(source.layout if layout is None else parse_layout(layout))
    except ValueError as error:
        raise UserError(f"--layout: {error}") from error
    return config

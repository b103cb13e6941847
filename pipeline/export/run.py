"""``narrowbert export``: a run directory, or a checkpoint of transformers -> a folder that transformers loads."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from data_prep.command_line import UserError
from data_prep.vocabulary import load_tokenizer, special_ids
from pipeline.checkpoint import TrainerState, load_run_model
from pipeline.config import ModelConfig
from pipeline.export.convert import CONFIG_NAMES, export_config, from_transformers, write_export
from pipeline.export.modeling_narrowbert import GATED
from pipeline.init import Source, match, open_source
from pipeline.layout import parse_layout
from pipeline.run_directory import read_run_record
from pipeline.spool import read_metrics
from pipeline.throughput import count_parameters


def export_run(run_dir: Path, output: Path, pooling: str | None = None) -> None:
    """Export the newest intact checkpoint of a run; ``pooling`` as in ``write_export``.

    Raises:
        UserError: no run or checkpoint, or ``output`` exists already.
    """
    model, state = load_run_model(run_dir)
    data = read_run_record(run_dir)["data"]
    write_export(
        dict(model.named_parameters()),
        model_config={**dataclasses.asdict(model.config), "vocab_size": state.vocab_size},
        tokenizer_path=run_dir / "tokenizer.json",
        special_ids=data["special_ids"],
        facts=_facts(run_dir, model.config, state, data["seq_length"]),
        output=output,
        pooling=pooling,
    )


def export_pretrained(
    folder: Path,
    output: Path,
    *,
    layout: str | None,
    tokenizer_path: Path | None,
    allow: Sequence[str],
    pooling: str | None = None,
) -> None:
    """Export a BERT of transformers or a NarrowBERT of its authors, as it is.

    Args:
        folder: holds config.json and model.safetensors.
        layout: of the export; the checkpoint's own where it is None.
        tokenizer_path: a tokenizer.json; ``folder/tokenizer.json`` where it is None.
        allow: names or patterns of tensors to leave out, and of what else may differ.
        pooling: as in ``write_export``.

    Raises:
        UserError: no such checkpoint, one that does not fit, or ``output`` exists already.
    """
    source = open_source(folder)
    tokenizer_path = tokenizer_path or folder / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise UserError(
            f"no tokenizer at {tokenizer_path}: name a tokenizer.json with --tokenizer, or make one of a "
            f"vocab.txt with python -c \"from transformers import AutoTokenizer as A; A.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\""
        )
    ids = special_ids(load_tokenizer(tokenizer_path))
    model_config = _model_config(source, layout)
    matched = match(source, export_config(model_config, ids), allow, tokenizer_path)
    if matched.kept:
        raise UserError(f"{folder} lacks what a masked-LM model needs: {', '.join(matched.kept)}")
    state, _ = matched.read()
    write_export(
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
    )
    for line in matched.describe():
        print(line)


def _model_config(source: Source, layout: str | None) -> dict[str, Any]:
    """A checkpoint's configuration as the training model's."""
    config: dict[str, Any] = dataclasses.asdict(ModelConfig())
    config |= {ours: source.setting(theirs) for ours, theirs in CONFIG_NAMES.items() if ours != "layout"}
    try:
        config["layout"] = str(source.layout if layout is None else parse_layout(layout))
    except ValueError as error:
        raise UserError(f"--layout: {error}") from error
    if config["activation"] not in {*ACT2FN, *GATED}:
        raise UserError(f"{source.folder / 'config.json'}: transformers has no hidden_act {config['activation']}")
    return config


def _facts(run_dir: Path, config: Any, state: TrainerState, seq_length: int) -> dict[str, Any]:
    """What the model card says of the run, as it was measured."""
    series = read_metrics(run_dir)

    def at_checkpoint(key: str) -> str:
        return next((f"{value:.4f}" for step, value in series.get(key, []) if step == state.step), "not evaluated")

    return {
        "layout": config.layout,
        "started from": state.config.get("init", {}).get("from_huggingface") or "random weights",
        "parameters": f"{count_parameters(config, state.vocab_size):,}",
        "steps": f"{state.step:,} of {state.config['training']['train_steps']:,}",
        "rows": f"{state.rows_consumed:,} of {seq_length} tokens",
        "precision": state.config["training"]["precision"],
        "validation loss (masked LM, nats)": at_checkpoint("validation/loss"),
        "validation masked accuracy": at_checkpoint("validation/masked_accuracy"),
        "data root hash": state.data_root_hash,
        "lineage": state.lineage_id,
    }

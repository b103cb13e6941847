"""``narrowbert export``: a checkpoint of a run -> a folder that transformers loads."""

import dataclasses
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.format import TrainerState
from pipeline.checkpoints.reading import load_run_model
from pipeline.config import ModelConfig
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.folder import check_output, write_export
from pipeline.export.model_card import Validation
from pipeline.model.parameters import count_parameters
from pipeline.runs.directory import read_run_record
from pipeline.runs.records import read_metrics


def export_run(
    run_dir: Path,
    output: Path,
    pooling: str | None = None,
    model_type: str = NarrowBertConfig.model_type,
    step: int | None = None,
    *,
    encoder_only: bool = False,
) -> list[str]:
    """Export a checkpoint of a run, the newest intact one unless a step is given.

    ``pooling``, ``model_type``, ``encoder_only`` and the result are those of ``write_export``.

    Raises:
        UserError: no run or checkpoint, ``output`` exists already, or the model is none of ``model_type``.
    """
    check_output(output)
    model, state = load_run_model(run_dir, step)
    if not (run_dir / "tokenizer.json").is_file():
        raise UserError(f"{run_dir} has no tokenizer.json: copy that of its shards there")
    data = read_run_record(run_dir)["data"]
    return write_export(
        dict(model.named_parameters()),
        model_config={**dataclasses.asdict(model.config), "vocab_size": state.vocab_size},
        tokenizer_path=run_dir / "tokenizer.json",
        special_ids=data["special_ids"],
        facts=_facts(run_dir, model.config, state, data["seq_length"]),
        validation=_validation(run_dir, state),
        output=output,
        pooling=pooling,
        model_type=model_type,
        encoder_only=encoder_only,
    )


def _facts(run_dir: Path, config: ModelConfig, state: TrainerState, seq_length: int) -> dict[str, Any]:
    """What the model card says of the run, as it was measured."""
    found = _validation(run_dir, state)
    return {
        "layout": config.layout,
        "started from": _origin(state),
        **_averaged(run_dir),
        "parameters": f"{count_parameters(config, state.vocab_size):,}",
        "steps": f"{state.step:,} of {state.config['training']['train_steps']:,}",
        "rows": f"{state.rows_trained:,} of {seq_length} tokens",
        "precision": state.config["training"]["precision"],
        "validation loss (masked LM, nats)": "not evaluated" if found is None else f"{found.loss:.4f}",
        "validation masked accuracy": "not evaluated" if found is None else f"{found.masked_accuracy:.4f}",
        "data root hash": state.data_root_hash,
        "lineage": state.lineage_id,
    }


def _validation(run_dir: Path, state: TrainerState) -> Validation | None:
    """The evaluation at the step of a checkpoint."""
    series = read_metrics(run_dir)
    loss, accuracy = (
        dict(series.get(f"validation/{name}", [])).get(state.step) for name in ("loss", "masked_accuracy")
    )
    if loss is None or accuracy is None:
        return None
    return Validation(shards=state.data_root_hash, loss=loss, masked_accuracy=accuracy)


def _origin(state: TrainerState) -> str:
    """The weights that the run began with."""
    if state.parent:
        before = f"{state.parent['steps']:,} steps and {state.parent['tokens']:,} tokens before"
        return f"step {state.parent['step']:,} of {state.parent['run']} ({before})"
    return state.config.get("init", {}).get("from_huggingface") or "random weights"


def _averaged(run_dir: Path) -> dict[str, str]:
    parts = read_run_record(run_dir).get("averaged_from", [])
    return {"average of": ", ".join(f"step {part['step']:,} of {part['run']}" for part in parts)} if parts else {}

"""``narrowbert finetune``: one training of transformers' Trainer for each seed, then one table of all."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from data_prep.contract.command_line import UserError
from pipeline.export.model_folder import open_config, open_tokenizer
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.files import read_splits
from pipeline.finetune.output import check_inputs, hash_inputs, output_folder
from pipeline.finetune.results import Result, as_figure, log_to_mlflow, write_results
from pipeline.finetune.seed import Seed, kept_result, run_seed
from pipeline.finetune.tasks import open_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What all seeds came to."""

    seeds: list[Result]
    """One per seed, in their order."""
    table: str
    """All metrics by seed with mean and deviation, as Markdown; also in ``results.md``."""


def finetune(config: FinetuneConfig, say: Callable[[str], None] = print) -> Results:
    """Train once per seed, measure, and write ``output``.

    A seed whose ``seed-N/result.json`` is there already is not trained again, so a killed command goes on where it
    stood. Its examples and model are to be what they were then.

    Args:
        config: checked by ``check_finetune``.
        say: called with each line of progress.

    Raises:
        UserError: examples, labels or a model that do not fit, or an ``output`` of another configuration, of other
            examples or of another model.
    """
    output = output_folder(config)
    output.check()
    transformers_logging.disable_progress_bar()
    splits = read_splits(config)
    tokenizer = _open_tokenizer(config)
    _require_packages()
    kept = {seed: kept_result(output.seed(seed)) for seed in config.training.seeds}
    inputs = hash_inputs(config, splits)
    for seed, result in kept.items():
        if result is not None:
            check_inputs(result.inputs, inputs, config, output.seed(seed))
            if not result.inputs:
                say(f"seed {seed}: an earlier version trained it and did not record of which examples and model")
    task = open_task(config, splits, tokenizer)
    cut = {split: task.cut(split) for split in splits}
    for split, number in cut.items():
        if number:
            say(f"{number} of {len(splits[split])} {split} texts are cut at {config.training.max_length} tokens")
    if torch.cuda.device_count() > 1:
        say(f"one of {torch.cuda.device_count()} GPUs is used: on several the batch would be another one")
    results = []
    for seed, result in kept.items():
        if result is None:
            each = Seed(config=config, task=task, tokenizer=tokenizer, number=seed, output=output, inputs=inputs)
            result = run_seed(each, [split for split in splits if split != "train"], say)
        say(f"seed {seed}: " + ", ".join(f"{name} {as_figure(value)}" for name, value in result.metrics.items()))
        results.append(result)
    examples = {split: len(rows) for split, rows in splits.items()}
    table = write_results(output.path, config, results, task.primary_metric, examples, cut)
    if config.tracking.enabled:
        log_to_mlflow(output.path, config, results)
    return Results(seeds=results, table=table)


def _open_tokenizer(config: FinetuneConfig) -> PreTrainedTokenizerBase:
    """Refuses first what the model cannot do with this configuration."""
    model, training = open_config(Path(config.model), also=["bert"]), config.training
    if training.max_length > model.max_position_embeddings:
        raise UserError(
            f"training.max_length is {training.max_length}, the model reads {model.max_position_embeddings} tokens"
        )
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision fp16 needs a GPU: take bf16 or fp32")
    return open_tokenizer(Path(config.model), model)


def _require_packages() -> None:
    try:
        import accelerate
        import scipy
        import seqeval
        import sklearn
        import torchmetrics
    except ImportError as error:
        raise UserError(f"no package {error.name}: pip install 'narrowbert[finetune]'") from error
    del accelerate, scipy, seqeval, sklearn, torchmetrics

"""``narrowbert finetune``: one training of transformers' Trainer for each seed, then one table of all."""

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import check_writable, follow_umask, write_atomically
from data_prep.contract.redaction import redact
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.export.model_folder import open_config, open_model, open_tokenizer
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.files import read_splits
from pipeline.finetune.results import Result, as_figure, as_text, log_to_mlflow, read_result, write_results
from pipeline.finetune.tasks import open_task
from pipeline.finetune.tasks.base import Task
from pipeline.runs.directory import flatten


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
    stood.

    Args:
        config: checked by ``check_finetune``.
        say: called with each line of progress.

    Raises:
        UserError: examples, labels or a model that do not fit, or an ``output`` of another configuration.
    """
    output = Path(config.output)
    _check_output(output, config)
    transformers_logging.disable_progress_bar()
    splits = read_splits(config)
    tokenizer = open_tokenizer(Path(config.model), open_config(Path(config.model), also=["bert"]))
    _require_packages()
    task = open_task(config, splits, tokenizer)
    cut = {split: task.cut(split) for split in splits}
    for split, number in cut.items():
        if number:
            say(f"{number} of {len(splits[split])} {split} texts are cut at {config.training.max_length} tokens")
    if torch.cuda.device_count() > 1:
        say(f"one of {torch.cuda.device_count()} GPUs is used: on several the batch would be another one")
    results = []
    for seed in config.training.seeds:
        kept = output / f"seed-{seed}" / "result.json"
        if not kept.is_file():
            result = _train(config, task, tokenizer, seed, [split for split in splits if split != "train"])
            write_atomically(kept, as_text(result), durable=True)
        result = read_result(kept)
        say(f"seed {seed}: " + ", ".join(f"{name} {as_figure(value)}" for name, value in result.metrics.items()))
        results.append(result)
    examples = {split: len(rows) for split, rows in splits.items()}
    table = write_results(output, config, results, task.primary_metric, examples, cut)
    if config.tracking.enabled:
        log_to_mlflow(output, config, results)
    return Results(seeds=results, table=table)


def _check_output(output: Path, config: FinetuneConfig) -> None:
    """The folder is this configuration's, apart from seeds and tracking, or can be made so."""
    own = _identity(config)
    path = output / "config.json"
    if path.is_file():
        try:
            kept = redact(dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): name another output or remove this one") from error
        if "output_dir" in kept:  # the name of ``output`` in folders of version 0.1
            kept["output"] = kept.pop("output_dir")
        # An option that the folder's version did not have was at its default there.
        if flatten(_identity(FinetuneConfig())) | flatten(kept) != flatten(own):
            raise UserError(f"{output} holds results of another configuration: name another output or remove it")
        return
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists and is no folder of results: name another output")
    check_writable("output", output)


def _claim(output: Path, config: FinetuneConfig) -> None:
    """Make the folder this configuration's, unless it is."""
    if (output / "config.json").is_file():
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "config.json", json.dumps(_identity(config), indent=2) + "\n", durable=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    """What results depend on, apart from the seeds, without secrets."""
    content = config_as_dict(config)
    return redact({**content, "tracking": None, "training": {**content["training"], "seeds": None}})


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


def _open_model(config: FinetuneConfig, task: Task) -> PreTrainedModel:
    options = dict(task.model_options)
    if config.training.dropout is not None:
        options |= {
            "hidden_dropout_prob": config.training.dropout,
            "attention_probs_dropout_prob": config.training.dropout,
        }
    model = open_model(Path(config.model), task.auto_class, dtype="float32", **options)
    limit = model.config.max_position_embeddings
    if config.training.max_length > limit:
        raise UserError(f"training.max_length is {config.training.max_length}, the model reads {limit} tokens")
    return model


def _train(
    config: FinetuneConfig, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int, measured: list[str]
) -> dict[str, Any]:
    """One training; the fields of a ``Result``."""
    set_seed(seed)
    folder = Path(config.output) / f"seed-{seed}"
    training = config.training
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.precision fp16 needs a GPU: take bf16 or fp32")
    model = _open_model(config, task)
    features = task.features("train")
    _claim(Path(config.output), config)  # not before: a mistake that is mended would make it another configuration's
    steps = math.ceil(training.epochs * math.ceil(len(features) / training.batch_size))
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(training.warmup_fraction * steps),
        weight_decay=training.weight_decay,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=2 * training.batch_size,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused there
        seed=seed,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,  # it would log a loss that is no number as the one before
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:  # the Trainer would spread a batch over all of them: other steps, fewer negatives
        arguments._n_gpu = 1
    if training.precision == "bf16":
        ensure_bf16_products(arguments.device)
    trainer = Trainer(model=task.wrap(model), args=arguments, train_dataset=features, data_collator=task.collator)  # type: ignore[arg-type]
    with _quiet():
        trainer.train()
        metrics = {}
        for split in measured:
            predictions = trainer.predict(task.features(split)).predictions  # type: ignore[arg-type]
            _check_predictions(predictions, seed)
            metrics |= {f"{split}/{name}": value for name, value in task.metrics(split, predictions).items()}
        model.save_pretrained(folder / "model")
        for path in (folder / "model").glob("*.safetensors"):
            follow_umask(path)
    tokenizer.save_pretrained(folder / "model")
    task.finish(folder / "model")
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    metrics = metrics or {"train/loss": losses[-1][1]}  # embeddings may be learnt without anything to measure on
    return {"seed": seed, "metrics": metrics, "losses": losses}


def _check_predictions(predictions: Any, seed: int) -> None:
    """Refuse what is no number: any figure of it would be wrong."""
    for scores in predictions if isinstance(predictions, tuple) else (predictions,):
        if not np.isfinite(scores).all():
            raise UserError(
                f"seed {seed} has diverged, its model answers with no numbers: give a smaller training.learning_rate"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The Trainer prints each logged dictionary; undefined metrics of a bad model warn once an epoch."""
    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""One seed: a model is trained and kept, and only then measured, so that no metric can cost a training."""

import contextlib
import dataclasses
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from data_prep.contract.command_line import UserError
from data_prep.contract.files import safetensors_written_to
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.export.model_folder import open_model
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.output import RESULT, TRAINED, OutputFolder, check_inputs
from pipeline.finetune.results import Result, as_text, read_result, write_durably
from pipeline.finetune.tasks.base import Task

Losses = list[list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seed:
    """What one seed is made of."""

    config: FinetuneConfig
    """Of all seeds."""
    task: Task
    """Examples and metrics."""
    tokenizer: PreTrainedTokenizerBase
    """The model's."""
    number: int
    """The seed."""
    output: OutputFolder
    """Of all seeds."""
    inputs: Mapping[str, str]
    """``hash_inputs`` of examples and model."""

    @property
    def folder(self) -> Path:
        """Its own: the model, and what it came to."""
        return self.output.seed(self.number)


def kept_result(folder: Path) -> Result | None:
    """What a seed came to, if it is done."""
    return read_result(folder / RESULT) if (folder / RESULT).is_file() else None


def run_seed(seed: Seed, measured: Sequence[str], say: Callable[[str], None]) -> Result:
    """Train and measure; a model that a command before has trained is measured alone.

    Args:
        measured: the splits to measure on.

    Raises:
        UserError: a model that does not fit, that diverged, or that cannot be written.
    """
    set_seed(seed.number)
    losses = _kept_losses(seed)
    if losses is None:
        model = _open_model(seed)
        seed.output.claim()
        trainer = _trainer(seed, model)
        with _quiet():
            trainer.train()
        losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
        if not math.isfinite(losses[-1][1]):
            raise _diverged(seed)
        _keep(seed, model, losses)
    else:
        say(f"seed {seed.number}: trained before, it is measured now")
        trainer = _trainer(seed, open_model(seed.folder / "model", seed.task.auto_class, dtype="float32"))
    metrics = {}
    with _quiet():
        for split in measured:
            predictions = trainer.predict(seed.task.features(split)).predictions  # type: ignore[arg-type]
            _check_predictions(predictions, seed)
            metrics |= {f"{split}/{name}": value for name, value in seed.task.metrics(split, predictions).items()}
    metrics = metrics or {"train/loss": losses[-1][1]}  # embeddings may be learnt without anything to measure on
    result = Result(seed=seed.number, metrics=metrics, losses=losses, inputs=dict(seed.inputs))
    write_durably(seed.folder / RESULT, as_text(dataclasses.asdict(result)))
    (seed.folder / TRAINED).unlink(missing_ok=True)
    shutil.rmtree(seed.folder / "trainer", ignore_errors=True)  # transformers makes it, and nothing in it
    return read_result(seed.folder / RESULT)


def _kept_losses(seed: Seed) -> Losses | None:
    """Losses of a training whose model waits to be measured."""
    path = seed.folder / TRAINED
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        losses, inputs = kept["losses"], kept["inputs"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged or cannot be read: remove it, to train the seed again") from error
    check_inputs(inputs, seed.inputs, seed.config, seed.folder)
    return losses


def _keep(seed: Seed, model: PreTrainedModel, losses: Losses) -> None:
    folder = seed.folder / "model"
    try:
        if folder.is_dir():  # what a killed command left
            shutil.rmtree(folder)
        with _quiet(), safetensors_written_to(folder):
            model.save_pretrained(folder)
        seed.tokenizer.save_pretrained(folder)
        seed.task.finish(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    write_durably(seed.folder / TRAINED, as_text({"losses": losses, "inputs": dict(seed.inputs)}))


def _open_model(seed: Seed) -> PreTrainedModel:
    options, dropout = dict(seed.task.model_options), seed.config.training.dropout
    if dropout is not None:
        options |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return open_model(Path(seed.config.model), seed.task.auto_class, dtype="float32", **options)


def _trainer(seed: Seed, model: PreTrainedModel) -> Trainer:
    task, training = seed.task, seed.config.training
    features = task.features("train")
    steps = math.ceil(training.epochs * math.ceil(len(features) / training.batch_size))
    arguments = TrainingArguments(
        output_dir=str(seed.folder / "trainer"),
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
        seed=seed.number,
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
    return Trainer(model=task.wrap(model), args=arguments, train_dataset=features, data_collator=task.collator)  # type: ignore[arg-type]


def _check_predictions(predictions: Any, seed: Seed) -> None:
    """Refuse what is no number: any figure of it would be wrong."""
    for scores in predictions if isinstance(predictions, tuple) else (predictions,):
        if not np.isfinite(scores).all():
            (seed.folder / TRAINED).unlink(missing_ok=True)  # worth nothing: another configuration may have the folder
            raise _diverged(seed)


def _diverged(seed: Seed) -> UserError:
    return UserError(
        f"seed {seed.number} has diverged, what its model gives is no number: give a smaller training.learning_rate"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The Trainer prints each logged dictionary; undefined metrics of a bad model warn once an epoch."""
    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

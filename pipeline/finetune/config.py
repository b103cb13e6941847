"""The configuration of ``narrowbert finetune``. Imports no torch."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from data_prep.contract.command_line import UserError
from data_prep.contract.shell.paths import PATH

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """Where the examples are.

    Files are .jsonl, .json (a list of records, or SQuAD's), .csv, .tsv (with a header), .parquet, .conll (tagging) or
    .txt (contrastive: a text a line).
    """

    train: str = dataclasses.field(default="train", metadata=PATH)
    """File of examples to learn from; with ``dataset`` the name of a split."""
    validation: str | None = dataclasses.field(default=None, metadata=PATH)
    """File (split) to measure on."""
    test: str | None = dataclasses.field(default=None, metadata=PATH)
    """A second file (split) to measure on."""
    dataset: str | None = None
    """Name of a data set for ``datasets.load_dataset``, instead of files."""
    subset: str | None = None
    """Its configuration, such as mrpc of nyu-mll/glue."""
    text: str = "text"
    """Field of the text; of the words (a list) in tagging; of the question in question answering."""
    second_text: str | None = None
    """Field of a second text, for pairs; of the context in question answering."""
    label: str = "label"
    """Field of the label, number, list of labels, tags (a list), SQuAD's answers, or how alike two texts are."""
    positive_label: str | None = None
    """Where there are two labels: the one whose F1 is measured; None: the last in alphabetical order."""
    label_separator: str = ","
    """Between several labels in a .csv or .tsv."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneTraining:
    """How to train. The defaults are BERT's (Devlin et al. 2019, appendix A.3)."""

    epochs: float = 3.0
    """Passes over the training examples."""
    learning_rate: float = 2e-5
    """Highest learning rate; it falls linearly to 0."""
    warmup_fraction: float = 0.1
    """Share of the steps in which it rises."""
    weight_decay: float = 0.01
    """AdamW's, not on biases and norms."""
    batch_size: int = 32
    """Examples per step and device."""
    max_length: int = 128
    """Tokens of an example; the rest is cut off (question answering: read in further windows)."""
    window_stride: int = 128
    """Tokens that two windows of a context have in common, in question answering."""
    dropout: float | None = None
    """Of hidden states and attention; None: the model's own."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One training for each: order of examples, new weights, dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the products; master weights are fp32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneContrastive:
    """Embeddings from plain text: ``task: contrastive``."""

    pooling: Literal["cls", "mean"] = "cls"
    """What stands for a text: [CLS], or the mean of its tokens."""
    temperature: float = 0.05
    """What cosines are divided by."""
    masked_span: int = 0
    """Neighbouring tokens that are masked in one of the two views; 0: dropout alone makes them differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneTracking:
    """MLflow. The server is MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db in the working folder."""

    enabled: bool = True
    """Send results to MLflow; results.json in the output folder is written in any case."""
    experiment_name: str = "narrowbert-finetune"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; default: the output folder's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """One task, trained once for each seed."""

    model: str = dataclasses.field(default="", metadata=PATH)
    """Folder that ``narrowbert export`` wrote, or a BERT of transformers."""
    output: str = dataclasses.field(default="", metadata=PATH)
    """Folder of the results: results.md, results.json, and seed-N/ with the model of each seed."""
    task: Literal["classification", "regression", "multi_label", "tagging", "question_answering", "contrastive"] = (
        "classification"
    )
    """What is learnt."""
    data: FinetuneData = dataclasses.field(default_factory=FinetuneData)
    """Data."""
    contrastive: FinetuneContrastive = dataclasses.field(default_factory=FinetuneContrastive)
    """Embeddings."""
    training: FinetuneTraining = dataclasses.field(default_factory=FinetuneTraining)
    """Training."""
    tracking: FinetuneTracking = dataclasses.field(default_factory=FinetuneTracking)
    """Tracking."""


def check_finetune(config: FinetuneConfig) -> None:
    """Refuse what cannot work, before anything heavy is imported.

    Raises:
        UserError: one line: what is missing or out of range.
    """
    for name in ("model", "output"):
        if not getattr(config, name):
            raise UserError(f"no {name}: give --{name}")
    if not (Path(config.model) / "config.json").is_file():
        why = (
            "it has no config.json (narrowbert export writes one)"
            if Path(config.model).exists()
            else "it does not exist"
        )
        raise UserError(f"{config.model} is no model folder: {why}")
    _check_training(config)
    if not 0 < config.contrastive.temperature < math.inf or config.contrastive.masked_span < 0:
        raise UserError("contrastive.temperature is above 0, contrastive.masked_span at least 0")
    is_measured = config.data.validation is not None or config.data.test is not None
    if config.task == "contrastive" and is_measured and config.data.second_text is None:
        raise UserError("contrastive is measured on pairs: give --data.second_text")
    if config.task != "contrastive" and not is_measured:
        raise UserError("nothing to measure on: give --data.validation or --data.test")


def _check_training(config: FinetuneConfig) -> None:
    training = config.training
    for name in ("epochs", "learning_rate", "batch_size"):
        if not 0 < getattr(training, name) < math.inf:
            raise UserError(f"training.{name} is {getattr(training, name)}: give a number above 0")
    if not 0 <= training.weight_decay < math.inf:
        raise UserError(f"training.weight_decay is {training.weight_decay}: give 0 or more")
    if training.dropout is not None and not 0 <= training.dropout < 1:
        raise UserError(f"training.dropout is {training.dropout}: give 0 to below 1")
    if config.task == "contrastive" and training.batch_size < 2:
        raise UserError("training.batch_size is 1: contrastive compares each text with the others of its batch")
    if not training.seeds or len(set(training.seeds)) < len(training.seeds):
        raise UserError("training.seeds needs at least one seed, each once")
    wrong = next((seed for seed in training.seeds if not 0 <= seed < 2**32), None)
    if wrong is not None:
        raise UserError(f"training.seeds has {wrong}: give numbers from 0 to {2**32 - 1}")
    if training.max_length < 8:
        raise UserError(f"training.max_length is {training.max_length}: give at least 8")
    if not 0 <= training.warmup_fraction < 1:
        raise UserError(f"training.warmup_fraction is {training.warmup_fraction}: give 0 to below 1")
    if config.task == "question_answering" and not 0 < training.window_stride < training.max_length // 2:
        raise UserError(
            f"training.window_stride is {training.window_stride}: give 1 to {training.max_length // 2 - 1}, "
            f"less than half of training.max_length ({training.max_length})"
        )

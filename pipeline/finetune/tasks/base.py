"""What each task makes of its examples: the model's inputs, and figures from its outputs.

Metrics are shares of 1, by scikit-learn, scipy, seqeval and torchmetrics.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Encoding
from torch import nn
from transformers import PreTrainedModel

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import Row, place, split_name

Feature = dict[str, Any]

Splits = Mapping[str, list[Row]]


class Task(Protocol):
    """What ``training.py`` needs of a task."""

    auto_class: str
    """The class of transformers that loads its model."""
    primary_metric: str
    """The figure that the task is judged by."""
    model_options: dict[str, Any]
    """Further settings of the model's configuration: labels, kind of problem."""
    collator: Any
    """Makes a batch of features."""

    def features(self, split: str) -> list[Feature]:
        """The model's inputs, in order."""
        ...

    def cut(self, split: str) -> int:
        """How many examples were longer than max_length and were cut."""
        ...

    def metrics(self, split: str, predictions: Any) -> dict[str, float]:
        """Figures of the model's outputs for ``features(split)``."""
        ...

    def wrap(self, model: PreTrainedModel) -> nn.Module:
        """What is trained, around the loaded model."""
        return model

    def finish(self, folder: Path) -> None:
        """Add to the folder of a trained model."""


def number_labels(labels: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Numbers of the training split's labels, in alphabetical order.

    Args:
        labels: those of all examples of each split.

    Raises:
        UserError: another split has labels of its own, or there is but one label.
    """
    numbers = {label: number for number, label in enumerate(sorted(set(labels["train"])))}
    for split, found in labels.items():
        unknown = sorted(set(found) - set(numbers))
        if unknown:
            raise UserError(
                f"the {split} split has labels that the training split has not: {', '.join(unknown[:5])} "
                f"(it has {', '.join(list(numbers)[:10])})"
            )
    if len(numbers) < 2:
        raise UserError(f"the training split has one label only: {next(iter(numbers), 'none at all')}")
    return numbers


def read_numbers(rows: Sequence[Row], config: FinetuneConfig, split: str) -> list[float]:
    """The label of each row as a number.

    Raises:
        UserError: one that is not a finite number.
    """
    field, numbers = config.data.label, []
    for number, row in enumerate(rows, 1):
        where = f"{place(config, split, number)}: '{field}' is {row[field]!r}"
        try:
            numbers.append(float(row[field]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}, not a number") from error
        if not math.isfinite(numbers[-1]):
            raise UserError(f"{where}, not a finite number")
    return numbers


def check_scores(config: FinetuneConfig, split: str, scores: Sequence[float]) -> None:
    """Refuse to measure a correlation with numbers that are all the same, which would be found out after training.

    Raises:
        UserError: fewer than two different numbers.
    """
    if len(set(scores)) < 2:
        raise UserError(
            f"{split_name(config, split)}: '{config.data.label}' is {scores[0]} in all {len(scores)} examples, and a "
            "correlation needs two different numbers: measure on more examples"
        )


def named_labels(numbers: Mapping[str, int]) -> dict[str, Any]:
    """Labels for a model's configuration."""
    return {
        "num_labels": len(numbers),
        "label2id": dict(numbers),
        "id2label": {number: label for label, number in numbers.items()},
    }


def inputs_of(encoding: Encoding) -> Feature:
    """A model's inputs of one example, without padding."""
    return {
        "input_ids": encoding.ids,
        "token_type_ids": encoding.type_ids,
        "attention_mask": encoding.attention_mask,
    }

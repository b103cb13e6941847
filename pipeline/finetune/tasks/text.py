"""Classification, regression and several labels of one or two texts."""

import itertools
from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import Row, place
from pipeline.finetune.tasks.base import (
    Feature,
    Splits,
    Task,
    check_scores,
    inputs_of,
    named_labels,
    number_labels,
    read_numbers,
)

_HOT = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
"""Whether a label holds, in the ways that files write it."""


class TextTask(Task):
    """Classification, regression and several labels at once, of one or two texts."""

    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.splits = splits
        self.tokenizer = tokenizer
        self.collator = DataCollatorWithPadding(tokenizer)
        self.primary_metric = {"classification": "accuracy", "regression": "pearson", "multi_label": "f1_micro"}[
            config.task
        ]
        self.labels = {split: self._read_labels(split, rows) for split, rows in splits.items()}
        self.encodings = {split: self._encode(rows) for split, rows in splits.items()}
        if config.task == "regression":
            self.model_options = {"num_labels": 1, "problem_type": "regression"}
            return
        places = self._name_hot_labels() if config.task == "multi_label" else []
        kind = "single_label_classification" if config.task == "classification" else "multi_label_classification"
        each = {
            split: list(labels) if config.task == "classification" else list(itertools.chain.from_iterable(labels))
            for split, labels in self.labels.items()
        }
        each["train"] += places
        self.numbers = number_labels(each)
        positive = config.data.positive_label
        if positive is not None and positive not in self.numbers:
            raise UserError(f"data.positive_label '{positive}' is none of {', '.join(self.numbers)}")
        self.model_options = {**named_labels(self.numbers), "problem_type": kind}

    def _read_labels(self, split: str, rows: list[Row]) -> list[Any]:
        if self.config.task == "regression":
            numbers = read_numbers(rows, self.config, split)
            if split != "train":
                check_scores(self.config, split, numbers)
            return numbers
        field, labels = self.config.data.label, []
        for number, row in enumerate(rows, 1):
            value, where = row[field], place(self.config, split, number)
            if self.config.task == "multi_label":
                if isinstance(value, str):
                    value = [part.strip() for part in value.split(self.config.data.label_separator) if part.strip()]
                if not isinstance(value, list) or any(isinstance(part, list | dict) for part in value):
                    raise UserError(f"{where}: '{field}' is {value!r}, not a list of labels")
                labels.append([str(part) for part in value])
            elif isinstance(value, list | dict) or value == "":
                raise UserError(f"{where}: '{field}' is {value!r}, not one label")
            else:
                labels.append(str(value))
        return labels

    def _name_hot_labels(self) -> list[str]:
        """Of lists such as [0, 1, 0], which say of every label whether it holds, make the places of those that hold.

        Returns:
            All places, or nothing where the lists name labels. [0, 1] alone could be either, and names two.
        """
        rows = [(split, number, row) for split, rows in self.labels.items() for number, row in enumerate(rows, 1)]
        if any(label not in _HOT for *_, row in rows for label in row) or all(
            len({*row}) == len(row) for *_, row in rows
        ):
            return []
        length = len(rows[0][2])
        for split, number, row in rows:
            if len(row) != length:
                where = f"{place(self.config, split, number)}: '{self.config.data.label}'"
                raise UserError(f"{where} says of {len(row)} labels whether they hold, the first example of {length}")
        self.labels = {
            split: [[str(index) for index, hot in enumerate(row) if _HOT[hot]] for row in rows]
            for split, rows in self.labels.items()
        }
        return [str(index) for index in range(length)]

    def _encode(self, rows: list[Row]) -> list[Encoding]:
        fields = [self.config.data.text, self.config.data.second_text]
        columns: list[Any] = [[str(row[field]) for row in rows] for field in fields if field is not None]
        return self.tokenizer(*columns, truncation=True, max_length=self.config.training.max_length).encodings or []

    def _target(self, label: Any) -> Any:
        if self.config.task == "classification":
            return self.numbers[label]
        if self.config.task == "multi_label":
            return [float(name in label) for name in self.numbers]
        return label

    def features(self, split: str) -> list[Feature]:
        pairs = zip(self.encodings[split], self.labels[split], strict=True)
        return [{**inputs_of(encoding), "labels": self._target(label)} for encoding, label in pairs]

    def cut(self, split: str) -> int:
        return sum(bool(encoding.overflowing) for encoding in self.encodings[split])

    def metrics(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        from scipy import stats
        from sklearn import metrics

        targets = np.array([self._target(label) for label in self.labels[split]])
        if self.config.task == "regression":
            scores = predictions.reshape(-1)
            return {
                "pearson": float(stats.pearsonr(scores, targets)[0]),  # pyright: ignore[reportArgumentType]
                "spearman": float(stats.spearmanr(scores, targets)[0]),  # pyright: ignore[reportArgumentType]
                "mean_squared_error": float(metrics.mean_squared_error(targets, scores)),
            }
        if self.config.task == "multi_label":
            chosen = predictions > 0  # a sigmoid above a half
            return {
                "f1_micro": float(metrics.f1_score(targets, chosen, average="micro")),
                "f1_macro": float(metrics.f1_score(targets, chosen, average="macro")),
                "exact_match": float(metrics.accuracy_score(targets, chosen)),
            }
        chosen = predictions.argmax(-1)
        figures = {
            "accuracy": float(metrics.accuracy_score(targets, chosen)),
            "f1_macro": float(metrics.f1_score(targets, chosen, average="macro")),
            "matthews": float(metrics.matthews_corrcoef(targets, chosen)),
        }
        if len(self.numbers) == 2:
            positive = self.numbers[self.config.data.positive_label or max(self.numbers)]
            figures["f1"] = float(metrics.f1_score(targets, chosen, pos_label=positive))
        return figures

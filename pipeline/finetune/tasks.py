"""What each task makes of its examples: the model's inputs, and figures from its outputs.

Metrics are shares of 1, by scikit-learn, scipy, seqeval and torchmetrics.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Encoding
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from data_prep.command_line import UserError
from pipeline.encode import first_subwords
from pipeline.export.modeling_narrowbert import IGNORE_INDEX
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.files import Row

Feature = dict[str, Any]
Splits = Mapping[str, list[Row]]


class Task(Protocol):
    """What ``run.py`` needs of a task."""

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

    def wrap(self, model: Any) -> Any:
        """What is trained, around the loaded model."""
        return model

    def finish(self, folder: Path) -> None:
        """Add to the folder of a trained model."""


def open_task(config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task that the configuration names.

    Raises:
        UserError: labels that cannot be read, or that the training examples do not have.
    """
    if config.task == "tagging":
        return TaggingTask(config, splits, tokenizer)
    if config.task == "question_answering":
        from pipeline.finetune.questions import QuestionTask

        return QuestionTask(config, splits, tokenizer)
    if config.task == "contrastive":
        from pipeline.finetune.contrastive import ContrastiveTask

        return ContrastiveTask(config, splits, tokenizer)
    return TextTask(config, splits, tokenizer)


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


def named_labels(numbers: Mapping[str, int]) -> dict[str, Any]:
    """Labels for a model's configuration."""
    return {
        "num_labels": len(numbers),
        "label2id": dict(numbers),
        "id2label": {number: label for label, number in numbers.items()},
    }


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
        kind = "single_label_classification" if config.task == "classification" else "multi_label_classification"
        each = {
            split: labels if config.task == "classification" else list(itertools.chain.from_iterable(labels))
            for split, labels in self.labels.items()
        }
        self.numbers = number_labels(each)
        positive = config.data.positive_label
        if positive is not None and positive not in self.numbers:
            raise UserError(f"data.positive_label '{positive}' is none of {', '.join(self.numbers)}")
        self.model_options = {**named_labels(self.numbers), "problem_type": kind}

    def _read_labels(self, split: str, rows: list[Row]) -> list[Any]:
        field, labels = self.config.data.label, []
        for number, row in enumerate(rows, 1):
            value = row[field]
            if self.config.task == "regression":
                try:
                    value = float(value)
                except (TypeError, ValueError) as error:
                    raise UserError(f"{split} example {number}: '{field}' is {value!r}, not a number") from error
                if not np.isfinite(value):
                    raise UserError(f"{split} example {number}: '{field}' is {value}, not a finite number")
            elif self.config.task == "multi_label":
                if isinstance(value, str):
                    value = [part.strip() for part in value.split(self.config.data.label_separator) if part.strip()]
                if not isinstance(value, list):
                    raise UserError(f"{split} example {number}: '{field}' is {value!r}, not a list of labels")
                value = [str(part) for part in value]
            elif isinstance(value, list | dict) or value == "":
                raise UserError(f"{split} example {number}: '{field}' is {value!r}, not one label")
            else:
                value = str(value)
            labels.append(value)
        return labels

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


class TaggingTask(Task):
    """A tag for each word, by its first sub-word. Words that are cut off count as O."""

    auto_class = "AutoModelForTokenClassification"
    primary_metric = "f1"

    def __init__(self, config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collator = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORE_INDEX)
        text, label = config.data.text, config.data.label
        for split, rows in splits.items():
            for number, row in enumerate(rows, 1):
                if not isinstance(row[text], list) or not isinstance(row[label], list):
                    raise UserError(f"{split} example {number}: '{text}' and '{label}' are lists of words and of tags")
                if len(row[text]) != len(row[label]) or not row[text]:
                    raise UserError(f"{split} example {number}: {len(row[text])} words, {len(row[label])} tags")
        self.tags = {split: [[str(tag) for tag in row[label]] for row in rows] for split, rows in splits.items()}
        every = {split: list(itertools.chain.from_iterable(tags)) for split, tags in self.tags.items()}
        wrong = next(
            (tag for tags in every.values() for tag in tags if tag != "O" and tag[:2] not in ("B-", "I-")), None
        )
        if wrong is not None:
            raise UserError(f"tag '{wrong}' is neither O nor B-something nor I-something")
        # A kind of entity whose I- the training split happens to lack is known all the same.
        kinds = {tag[2:] for tag in every["train"] if tag != "O"}
        every["train"] += ["O", *(f"{letter}-{kind}" for letter in "BI" for kind in kinds)]
        self.numbers = number_labels(every)
        self.model_options = named_labels(self.numbers)
        self.encodings = {
            split: tokenizer(
                [[str(word) for word in row[text]] for row in rows],
                is_split_into_words=True,
                truncation=True,
                max_length=config.training.max_length,
            ).encodings
            or []
            for split, rows in splits.items()
        }

    def features(self, split: str) -> list[Feature]:
        features = []
        for encoding, tags in zip(self.encodings[split], self.tags[split], strict=True):
            labels = [IGNORE_INDEX] * len(encoding.ids)
            for position in first_subwords(encoding.word_ids):
                labels[position] = self.numbers[tags[encoding.word_ids[position]]]  # pyright: ignore[reportArgumentType, reportCallIssue]
            features.append({**inputs_of(encoding), "labels": labels})
        return features

    def cut(self, split: str) -> int:
        return sum(bool(encoding.overflowing) for encoding in self.encodings[split])

    def metrics(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        from seqeval import metrics

        names, found = list(self.numbers), []
        for encoding, tags, row in zip(self.encodings[split], self.tags[split], predictions.argmax(-1), strict=True):
            words = ["O"] * len(tags)
            for position in first_subwords(encoding.word_ids):
                words[encoding.word_ids[position]] = names[row[position]]  # pyright: ignore[reportArgumentType, reportCallIssue]
            found.append(words)
        truth = self.tags[split]
        scores = {name: getattr(metrics, f"{name}_score") for name in ("f1", "precision", "recall", "accuracy")}
        return {name: float(score(truth, found)) for name, score in scores.items()}


def inputs_of(encoding: Encoding) -> Feature:
    """A model's inputs of one example, without padding."""
    return {
        "input_ids": encoding.ids,
        "token_type_ids": encoding.type_ids,
        "attention_mask": encoding.attention_mask,
    }

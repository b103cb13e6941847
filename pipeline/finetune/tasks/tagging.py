"""A tag for every word."""

import itertools

import numpy as np
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from data_prep.contract.command_line import UserError
from pipeline.export.modeling_narrowbert import IGNORE_INDEX
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import place
from pipeline.finetune.tasks.base import Feature, Splits, Task, inputs_of, named_labels, number_labels
from pipeline.inference.encode import first_subwords


class TaggingTask(Task):
    """A tag for each word, by its first sub-word. Words that are cut off count as O."""

    auto_class = "AutoModelForTokenClassification"
    primary_metric = "f1"

    def __init__(self, config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.collator = DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORE_INDEX)
        text, label = config.data.text, config.data.label
        for split, rows in splits.items():
            for number, row in enumerate(rows, 1):
                where = place(config, split, number)
                if not isinstance(row[text], list) or not isinstance(row[label], list):
                    raise UserError(f"{where}: '{text}' and '{label}' are to be lists of words and of tags")
                if len(row[text]) != len(row[label]) or not row[text]:
                    raise UserError(f"{where}: {len(row[text])} words in '{text}', {len(row[label])} tags in '{label}'")
                wrong = next((tag for tag in map(str, row[label]) if tag != "O" and tag[:2] not in ("B-", "I-")), None)
                if wrong is not None:
                    raise UserError(f"{where}: tag '{wrong}' in '{label}' is neither O nor B-something nor I-something")
        self.tags = {split: [[str(tag) for tag in row[label]] for row in rows] for split, rows in splits.items()}
        every = {split: list(itertools.chain.from_iterable(tags)) for split, tags in self.tags.items()}
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

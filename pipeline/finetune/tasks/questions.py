"""Question answering: the span of a context that answers a question, after BERT's SQuAD recipe (Devlin et al. 2019).

A context that does not fit is read in windows that overlap; the best span of all windows is the answer. Where [CLS]
scores above every span of every window, the answer is that there is none (SQuAD 2.0).
"""

from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import Row, context_field, place
from pipeline.finetune.tasks.base import Feature, Splits, Task, inputs_of

LONGEST_ANSWER = 30
"""Tokens."""

BEST = 20
"""Starts, and ends, that are tried together."""


class QuestionTask(Task):
    """SQuAD's task."""

    auto_class = "AutoModelForQuestionAnswering"
    primary_metric = "f1"

    def __init__(self, config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.splits = splits
        self.context = context_field(config)
        self.collator = DataCollatorWithPadding(tokenizer)
        self.model_options: dict[str, Any] = {}
        for split, rows in splits.items():
            for number, row in enumerate(rows, 1):
                self._check(row, place(config, split, number))
        self.has_unanswerable = any(not self._answers(row)["text"] for rows in splits.values() for row in rows)
        self.windows = {split: self._windows(tokenizer, split, rows) for split, rows in splits.items()}

    def _answers(self, row: Row) -> dict[str, list[Any]]:
        return row[self.config.data.label]

    def _check(self, row: Row, place: str) -> None:
        label = self.config.data.label
        answers, context = row[label], row[self.context]
        if not isinstance(row[self.config.data.text], str) or not isinstance(context, str):
            raise UserError(f"{place}: '{self.config.data.text}' and '{self.context}' are to be texts")
        if not isinstance(answers, dict) or not {"text", "answer_start"} <= set(answers):
            raise UserError(f"{place}: '{label}' is not SQuAD's answers, with text and answer_start")
        texts, starts = answers["text"], answers["answer_start"]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise UserError(f"{place}: text and answer_start of '{label}' are not lists of the same length")
        for text, start in zip(texts, starts, strict=True):
            if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
                raise UserError(f"{place}: '{label}' has the answer {text!r} at {start!r}, not a text at a number")
            if not text.strip():
                raise UserError(f"{place}: '{label}' has an empty answer: where there is none, give empty lists")
            if start < 0 or context[start : start + len(text)] != text:
                raise UserError(f"{place}: the answer '{text}' is not at character {start} of its context")

    def _check_room(self, tokenizer: PreTrainedTokenizerBase, question: str, context: str, place: str) -> None:
        """Refuse a question that leaves a window no room to move on in a context that needs several."""
        training = self.config.training
        length = len(tokenizer(question, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        room = training.max_length - tokenizer.num_special_tokens_to_add(pair=True) - length
        if room > training.window_stride:
            return
        needed = len(tokenizer(context, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
        if needed > room:
            raise UserError(
                f"{place}: its question has {length} tokens and leaves {max(room, 0)} of training.max_length "
                f"{training.max_length} for the context, no more than training.window_stride {training.window_stride}: "
                "give a larger max_length or a smaller window_stride, or shorten the question"
            )

    def _windows(self, tokenizer: PreTrainedTokenizerBase, split: str, rows: list[Row]) -> list[list[Encoding]]:
        """The windows of each row."""
        training = self.config.training
        found = []
        for number, row in enumerate(rows, 1):
            question = str(row[self.config.data.text]).strip()
            self._check_room(tokenizer, question, row[self.context], place(self.config, split, number))
            encoding = tokenizer(
                [question],
                [row[self.context]],
                truncation="only_second",
                max_length=training.max_length,
                stride=training.window_stride,
                return_overflowing_tokens=True,
            ).encodings
            found.append(encoding or [])
        return found

    def features(self, split: str) -> list[Feature]:
        features = []
        for row, windows in zip(self.splits[split], self.windows[split], strict=True):
            for window in windows:
                start, end = self._span(window, self._answers(row))
                features.append({**inputs_of(window), "start_positions": start, "end_positions": end})
        return features

    @staticmethod
    def _span(window: Encoding, answers: dict[str, list[Any]]) -> tuple[int, int]:
        """First and last token of the first answer; [CLS] where the window does not hold it."""
        if not answers["text"]:
            return 0, 0
        text = answers["text"][0]
        # A blank is no token's: an answer that begins or ends with one would be in no window.
        first = answers["answer_start"][0] + len(text) - len(text.lstrip())
        last = first + len(text.strip()) - 1
        start, end = window.char_to_token(first, 1), window.char_to_token(last, 1)
        return (0, 0) if start is None or end is None else (start, end)

    def cut(self, split: str) -> int:  # noqa: ARG002 - long texts are windowed, never cut
        return 0

    def metrics(self, split: str, predictions: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
        from torchmetrics.functional.text import squad

        starts, ends = predictions
        answers, targets, window = [], [], 0
        for number, (row, windows) in enumerate(zip(self.splits[split], self.windows[split], strict=True)):
            several = slice(window, window + len(windows))
            answer = self.answer(row[self.context], windows, starts[several], ends[several])
            answers.append({"id": str(number), "prediction_text": answer})
            truth = self._answers(row)["text"] or [""]
            targets.append({"id": str(number), "answers": {"text": truth, "answer_start": [0] * len(truth)}})
            window += len(windows)
        return {name: float(value) / 100 for name, value in squad(answers, targets).items()}

    def answer(self, context: str, windows: list[Encoding], starts: np.ndarray, ends: np.ndarray) -> str:
        """The best span of a context, or "" where that there is none scores higher.

        Args:
            starts, ends: scores of the tokens, [windows, positions].
        """
        best, text, nothing = -np.inf, "", np.inf
        for window, start_scores, end_scores in zip(windows, starts, ends, strict=True):
            nothing = min(nothing, start_scores[0] + end_scores[0])
            inside = np.array([i for i, sequence in enumerate(window.sequence_ids) if sequence == 1])
            if not len(inside):
                continue
            first = inside[np.argsort(-start_scores[inside])[:BEST]]
            last = inside[np.argsort(-end_scores[inside])[:BEST]]
            totals = start_scores[first][:, None] + end_scores[last][None]
            lengths = last[None] - first[:, None]
            totals = np.where((lengths >= 0) & (lengths < LONGEST_ANSWER), totals, -np.inf)
            row, column = np.unravel_index(totals.argmax(), totals.shape)
            if totals[row, column] > best:
                best = totals[row, column]
                text = context[window.offsets[first[row]][0] : window.offsets[last[column]][1]]
        return "" if self.has_unanswerable and nothing > best else text

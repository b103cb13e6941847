"""What the rows of examples may hold: file, row and field of what cannot be used, before anything is computed."""

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import FinetuneConfig

Row: TypeAlias = dict[str, Any]


def split_name(config: FinetuneConfig, split: str) -> str:
    """A split's file, or its data set and name, for a message."""
    name = str(getattr(config.data, split))
    return name if config.data.dataset is None else f"{config.data.dataset} {name}"


def place(config: FinetuneConfig, split: str, number: int) -> str:
    """Where a row is, for a message; ``number`` counts from 1."""
    return f"{split_name(config, split)}, example {number}"


def context_field(config: FinetuneConfig) -> str:
    """The field of the context, in question answering."""
    return config.data.second_text or "context"


def check_rows(rows: list[Row], config: FinetuneConfig, split: str) -> None:
    """Refuse rows that lack a field, or whose texts are none. What labels must be is each task's own.

    Raises:
        UserError: the first row that cannot be used.
    """
    fields = fields_of(config, split)
    texts = fields if _needs_text_alone(config, split) else fields[:-1]
    for number, row in enumerate(rows, 1):
        where = place(config, split, number)
        for field in fields:
            if field not in row:
                there = ", ".join(sorted(map(str, row)))
                raise UserError(
                    f"{where} has no field '{field}' (it has {there}): see --data.text, .second_text, .label"
                )
            if _holds_null(row[field]):
                raise UserError(f"{where}: '{field}' is null or holds null: fill it in, or leave the example out")
        for field in texts:
            for text in _texts_of(row[field], where, field, are_words=config.task == "tagging"):
                _check_characters(text, where, field)


def fields_of(config: FinetuneConfig, split: str) -> list[str]:
    """The fields of a row that are read: its texts, and the label after them, where it needs one."""
    data = config.data
    if _needs_text_alone(config, split):
        return [data.text]
    second = context_field(config) if config.task == "question_answering" else data.second_text
    return [data.text, *([] if second is None else [second]), data.label]


def _needs_text_alone(config: FinetuneConfig, split: str) -> bool:
    return config.task == "contrastive" and split == "train"


def _holds_null(value: Any) -> bool:
    """None, or NaN, which tables write for it; also inside of a list."""
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None or (isinstance(value, float) and math.isnan(value))


def _texts_of(value: Any, where: str, field: str, *, are_words: bool) -> Iterator[str]:
    if are_words != isinstance(value, list):
        wanted = "a list of words" if are_words else "one text"
        raise UserError(f"{where}: '{field}' is {_short(value)}, not {wanted}")
    for text in value if are_words else [value]:
        if isinstance(text, bool | dict | list):
            raise UserError(f"{where}: '{field}' holds {_short(text)}, not text")
        yield str(text)


def _check_characters(text: str, where: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise UserError(f"{where}: character {error.start + 1} of '{field}' is {half}, half of a character") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Labelled examples from files, or from a data set of ``datasets``."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import SPLITS, FinetuneConfig, FinetuneData

Row = dict[str, Any]


def read_splits(config: FinetuneConfig) -> dict[str, list[Row]]:
    """The rows of each split that the configuration names, each with the fields that it names.

    Raises:
        UserError: a file that is missing, unreadable, empty, of an unknown kind or without such a field.
    """
    splits = {}
    for split in SPLITS:
        name = getattr(config.data, split)
        if name is None:
            continue
        rows = read_file(Path(name), config) if config.data.dataset is None else _read_dataset(config.data, name)
        if not rows:
            raise UserError(f"{name} holds no examples")
        _check_fields(rows, name, config, only_text=split == "train" and config.task == "contrastive")
        splits[split] = rows
    return splits


def _check_fields(rows: list[Row], name: str, config: FinetuneConfig, *, only_text: bool) -> None:
    data = config.data
    fields = [data.text] if only_text else [f for f in (data.text, data.label, data.second_text) if f is not None]
    for number, row in enumerate(rows, 1):
        for field in fields:
            if row.get(field) is None:
                there = ", ".join(sorted(map(str, row)))
                raise UserError(
                    f"{name}, example {number} has no field '{field}' (it has {there}): see --data.text, .label"
                )


def read_file(path: Path, config: FinetuneConfig) -> list[Row]:
    """All rows of a file, read by what its name ends in.

    Raises:
        UserError: as in ``read_splits``.
    """
    reader = _READERS.get(path.suffix)
    if not path.is_file():
        raise UserError(f"no file {path}")
    if reader is None:
        raise UserError(f"{path} is none of {', '.join(_READERS)}")
    try:
        return list(reader(path, config.data))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\r\n")


def _read_jsonl(path: Path, _: FinetuneData) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object")
        yield row


def _read_txt(path: Path, data: FinetuneData) -> Iterator[Row]:
    for _, line in _lines(path):
        if line.strip():
            yield {data.text: line}


def _read_csv(path: Path, _: FinetuneData) -> Iterator[Row]:
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL  # GLUE's .tsv have stray quotes
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}, line {reader.line_num} has not as many columns as the header")
            yield row


def _read_parquet(path: Path, _: FinetuneData) -> Iterator[Row]:
    import pyarrow.parquet as pq

    yield from pq.read_table(path).to_pylist()


def _read_conll(path: Path, data: FinetuneData) -> Iterator[Row]:
    """Sentences between blank lines; the first column is the word, the last its tag. IOB1 and IOB2 both become IOB2."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in [*_lines(path), (0, "")]:
        columns = line.split("\t") if "\t" in line else line.split()
        if columns and columns[0] == "-DOCSTART-":
            continue
        if not line.strip():
            if words:
                yield {data.text: words, data.label: to_iob2(tags)}
            words, tags = [], []
        elif len(columns) < 2:
            raise UserError(f"{path}, line {number} has no tag after '{columns[0]}'")
        else:
            words.append(columns[0])
            tags.append(columns[-1].strip())


def to_iob2(tags: Iterable[str]) -> list[str]:
    """Every entity begins with B-."""
    converted, before = [], "O"
    for tag in tags:
        kind, _, entity = tag.partition("-")
        is_new = kind == "I" and before.partition("-")[2] != entity
        converted.append(f"B-{entity}" if is_new else tag)
        before = tag
    return converted


def _read_squad(path: Path, data: FinetuneData) -> Iterator[Row]:
    """One row a question: id, question, context, and ``{"text": [...], "answer_start": [...]}``."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                yield {
                    "id": str(question["id"]),
                    data.text: question["question"],
                    data.second_text or "context": paragraph["context"],
                    data.label: {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [int(answer["answer_start"]) for answer in answers],
                    },
                }


_READERS: Mapping[str, Callable[[Path, FinetuneData], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".json": _read_squad,
}


def _read_dataset(data: FinetuneData, split: str) -> list[Row]:
    """A split of a data set; numbers of classes become their names."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.dataset needs a package: pip install 'narrowbert[finetune]'") from error
    assert data.dataset is not None
    try:
        loaded = datasets.load_dataset(data.dataset, data.subset, split=split)
    except Exception as error:  # the library raises its own, and those of fsspec, requests and huggingface_hub
        raise UserError(f"cannot load {data.dataset} {data.subset or ''} {split}: {error}") from error
    feature = loaded.features.get(data.label)
    inner = getattr(feature, "feature", feature)
    rows: list[Row] = [dict(row) for row in loaded]
    if isinstance(inner, datasets.ClassLabel):
        for row in rows:
            row[data.label] = inner.int2str(row[data.label])
    return rows

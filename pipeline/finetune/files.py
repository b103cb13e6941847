"""Labelled examples from files, or from a data set of ``datasets``."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from pipeline.finetune.config import SPLITS, FinetuneConfig, FinetuneData
from pipeline.finetune.rows import Row, check_rows, place


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
        rows = read_file(Path(name), config) if config.data.dataset is None else _read_dataset(config, split)
        if not rows:
            raise UserError(f"{name} holds no examples")
        check_rows(rows, config, split)
        splits[split] = rows
    return splits


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
    except UnicodeDecodeError as error:
        line = _first_line_that_is_not_utf8(path)
        raise UserError(f"{path}, line {line} is not UTF-8 ({error.reason}): convert the file, with iconv") from error
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _first_line_that_is_not_utf8(path: Path) -> int:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    raise AssertionError("a file that could not be decoded can")


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
    csv.field_size_limit(2**31 - 1)  # the default refuses texts of more than 128 KiB
    quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL  # GLUE's .tsv have stray quotes
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting)
        header = list(reader.fieldnames or [])
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise UserError(f"{path}, line 1 names the column '{twice[0]}' twice: rename one")
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


def _read_json(path: Path, data: FinetuneData) -> Iterator[Row]:
    """SQuAD's articles, a list of records, or a record a line, which many name .json as well."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from _read_jsonl(path, data)
        return
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise UserError(f"{path} is neither SQuAD's format, nor a list of records, nor a record a line")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {number} is not a JSON object")
        if "paragraphs" in record:
            yield from _read_article(record, f"{path}, article {number}", data)
        else:
            yield record


def _read_article(article: Mapping[str, Any], place: str, data: FinetuneData) -> Iterator[Row]:
    """One row a question: id, question, context, and ``{"text": [...], "answer_start": [...]}``."""
    try:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = question.get("answers", [])
                yield {
                    "id": str(question["id"]),
                    data.text: question["question"],
                    data.second_text or "context": paragraph["context"],
                    data.label: {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                }
    except KeyError as error:
        raise UserError(f"{place} is not SQuAD's: it has no {error} where that belongs") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{place} is not SQuAD's: {error}") from error


_READERS: Mapping[str, Callable[[Path, FinetuneData], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".json": _read_json,
}


def _read_dataset(config: FinetuneConfig, split: str) -> list[Row]:
    """A split of a data set; numbers of classes become their names."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.dataset needs a package: pip install 'narrowbert[finetune]'") from error
    data, name = config.data, getattr(config.data, split)
    assert data.dataset is not None
    try:
        loaded = datasets.load_dataset(data.dataset, data.subset, split=name)
    except Exception as error:  # the library raises its own, and those of fsspec, requests and huggingface_hub
        raise UserError(f"cannot load {data.dataset} {data.subset or ''} {name}: {error}") from error
    feature = loaded.features.get(data.label)
    inner = getattr(feature, "feature", feature)
    rows: list[Row] = [dict(row) for row in loaded]
    if isinstance(inner, datasets.ClassLabel):
        for number, row in enumerate(rows, 1):
            row[data.label] = _class_names(
                row[data.label], inner.names, f"{place(config, split, number)}: '{data.label}'"
            )
    return rows


def _class_names(value: Any, names: Sequence[str], where: str) -> Any:
    if isinstance(value, list):
        return [_class_names(part, names, where) for part in value]
    if value is None or not 0 <= value < len(names):
        hint = "its labels are not published, measure on a split that has them" if value in (None, -1) else "mend it"
        raise UserError(f"{where} is {value}, none of the {len(names)} classes: {hint}")
    return names[value]

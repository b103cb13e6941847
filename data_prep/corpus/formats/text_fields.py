"""Which fields of a record, or columns of a table, are its text."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.config import CleaningConfig, CorpusConfig, as_tuple
from data_prep.corpus.documents import Document, Reject, sample, whole_document

if TYPE_CHECKING:
    import pyarrow

BETWEEN_FIELDS = "\n\n"
"""What stands between the texts of several fields."""

_MISSING = object()


class Facts(NamedTuple):
    """What a record says of its text."""

    url: str | None = None
    """In ``corpus.url_field``."""
    score: float | None = None
    """In ``corpus.score_field``."""
    encoding: str | None = None
    """As of a document."""


def facts_of(url: object, score: object) -> Facts:
    """By the values of both fields; one that is no string, or no finite number, is none."""
    url = url.decode("utf-8", "replace") if isinstance(url, bytes) else url
    number = None
    if score is not None and not isinstance(score, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(score)  # pyright: ignore[reportArgumentType]
    if number is not None and not math.isfinite(number):
        number = None
    return Facts(url if isinstance(url, str) and url else None, number)


def with_facts(items: Iterable[Document | Reject], facts: Facts) -> Iterator[Document | Reject]:
    """The documents of one record, with what it says of them."""
    known = {name: value for name, value in facts._asdict().items() if value is not None}
    if not known:
        yield from items
        return
    for item in items:
        yield dataclasses.replace(item, **known) if isinstance(item, Document) else item


def documents_of_record(
    document_id: str,
    record: Mapping[str, Any],
    content: str,
    config: CorpusConfig,
    cleaning: CleaningConfig,
    encoding: str | None = None,
) -> Iterator[Document | Reject]:
    """The documents of a record, by its fields; ``encoding`` as of a document."""
    text = text_of_record(document_id, record, content, config)
    if isinstance(text, Reject):
        yield text
        return
    values = (_value(record, name) if name else None for name in fact_fields(config))
    yield from with_facts(whole_document(document_id, text, cleaning), facts_of(*values)._replace(encoding=encoding))


def fact_fields(config: CorpusConfig) -> tuple[str | None, str | None]:
    """The fields of ``Facts``."""
    return config.url_field, config.score_field


def text_of_record(document_id: str, record: Mapping[str, Any], content: str, config: CorpusConfig) -> str | Reject:
    """The text in ``corpus.text_field`` of a record, or the reject that names the field that has none.

    Of several fields, those that are empty or null are left out; not one may be missing.
    """
    names = as_tuple(config.text_field)
    texts: list[str] = []
    for name in names:
        value = _value(record, name)
        if isinstance(value, str):
            texts.append(value)
        elif value is not None or len(names) == 1:
            return no_text_field(document_id, name, record, content)
    return joined_fields(texts)


def joined_fields(texts: Sequence[str]) -> str:
    """The texts of a record's fields as one text."""
    return texts[0] if len(texts) == 1 else BETWEEN_FIELDS.join(filter(None, texts))


def _value(record: Mapping[str, Any], name: str) -> Any:
    """What stands in a field: that of this very name, else the one that the name's dots lead to."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def no_text_field(document_id: str, field: str, record: Mapping[str, Any], content: str) -> Reject:
    """The reject of a record without a text."""
    value = _value(record, field)
    if value is _MISSING:
        detail = f"no field '{field}' among {', '.join(map(str, record))[:200]}"
    else:
        detail = f"the field '{field}' is no string but {type(value).__name__}"
    return Reject(id=document_id, reason="no_text_field", detail=sample(detail), sample=sample(content))


def column_problem(schema: "pyarrow.Schema", config: CorpusConfig) -> str | None:
    """Why one of the columns of an Arrow schema holds no text; None where all do."""
    import pyarrow

    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary(), pyarrow.null())
    for name in as_tuple(config.text_field):
        kind = schema
        for part in _path(schema, name):
            inside = isinstance(kind, pyarrow.Schema) or pyarrow.types.is_struct(kind)
            names = [kind.field(i).name for i in range(_size(kind))] if inside else []
            if part not in names:
                return f"no column '{name}' among {', '.join(schema.names)[:200]}"
            kind = kind.field(names.index(part)).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if kind not in (*texts, pyarrow.string_view(), pyarrow.binary_view()):
            which = "the column" if isinstance(config.text_field, str) else f"the column '{name}'"
            return f"{which} is {kind}"
    return None


def _size(kind: Any) -> int:
    """Fields of a schema or of a struct."""
    return getattr(kind, "num_fields", None) or len(getattr(kind, "names", ()))


def _path(schema: "pyarrow.Schema", name: str) -> list[str]:
    return [name] if name in schema.names else name.split(".")


def column_values(batch: "pyarrow.RecordBatch", config: CorpusConfig) -> Iterator[list[bytes | None]]:
    """For each row of a record batch the values of the text columns, which need not be UTF-8 whatever their type says.

    Raises:
        Exception: of pyarrow, where the batch is damaged.
    """
    import pyarrow

    columns = [_column(batch, name).cast(pyarrow.large_binary()) for name in as_tuple(config.text_field)]
    return map(list, zip(*(column.to_pylist() for column in columns), strict=True))


def column_facts(batch: "pyarrow.RecordBatch", config: CorpusConfig) -> Iterator[Facts]:
    """For each row of a record batch what it says of its text; nothing where it has no such columns.

    Raises:
        Exception: of pyarrow, where the batch is damaged.
    """
    import pyarrow

    found: list[list[object]] = []
    for name in fact_fields(config):
        column = None
        if name is not None:
            with contextlib.suppress(ValueError, pyarrow.ArrowException):  # there is none
                column = _column(batch, name)
        if column is None:
            found.append([None] * batch.num_rows)
            continue
        if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())  # it need not be UTF-8
        found.append(column.to_pylist())
    return map(facts_of, *found)


def _column(batch: "pyarrow.RecordBatch", name: str) -> Any:
    """The array that a column's name, or its dots, lead to."""
    import pyarrow
    import pyarrow.compute

    top, *inner = _path(batch.schema, name)
    column = batch.column(batch.schema.names.index(top))
    for part in inner:
        column = pyarrow.compute.struct_field(column, part)  # pyright: ignore[reportAttributeAccessIssue]
    return column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column


def column_bytes(batch: "pyarrow.RecordBatch", config: CorpusConfig) -> int:
    """Of the columns of a record batch that the text columns are in."""
    tops = {_path(batch.schema, name)[0] for name in as_tuple(config.text_field)}
    return sum(batch.column(batch.schema.names.index(top)).nbytes for top in tops)

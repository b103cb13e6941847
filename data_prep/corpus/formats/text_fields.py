"""Which fields of a record, or columns of a table, are its text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.config import CorpusConfig, as_tuple
from data_prep.corpus.documents import Reject, sample

if TYPE_CHECKING:
    import pyarrow

BETWEEN_FIELDS = "\n\n"
"""What stands between the texts of several fields."""

_MISSING = object()


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
    import pyarrow.compute

    columns = []
    for name in as_tuple(config.text_field):
        top, *inner = _path(batch.schema, name)
        column = batch.column(batch.schema.names.index(top))
        for part in inner:
            column = pyarrow.compute.struct_field(column, part)  # pyright: ignore[reportAttributeAccessIssue]
        if pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        columns.append(column.cast(pyarrow.large_binary()).to_pylist())
    return map(list, zip(*columns, strict=True))


def column_bytes(batch: "pyarrow.RecordBatch", config: CorpusConfig) -> int:
    """Of the columns of a record batch that the text columns are in."""
    tops = {_path(batch.schema, name)[0] for name in as_tuple(config.text_field)}
    return sum(batch.column(batch.schema.names.index(top)).nbytes for top in tops)

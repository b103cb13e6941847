"""The document filters, in the order in which they see a document. A new filter is one more line here."""

from collections.abc import Mapping

from data_prep.config import PrepConfig
from data_prep.filters.document_filter import DocumentFilter
from data_prep.filters.evaluation_ngrams import EvaluationNgrams

DOCUMENT_FILTERS: list[type[DocumentFilter]] = [
    EvaluationNgrams,
]


def filter_notes(config: PrepConfig, record: Mapping[str, int]) -> list[str]:
    """What the user is told after the map stage, from the record of a map task."""
    notes = (document_filter.note(config, record) for document_filter in DOCUMENT_FILTERS)
    return [note for note in notes if note is not None]


def open_filters(config: PrepConfig) -> list[DocumentFilter]:
    """The filters that the configuration asks for."""
    opened = (document_filter.open(config) for document_filter in DOCUMENT_FILTERS)
    return [found for found in opened if found is not None]

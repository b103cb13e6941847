"""The document filters, in the order in which they see a document. A new filter is one more line here."""

import dataclasses
from collections.abc import Mapping, Sequence

from data_prep.config import PrepConfig
from data_prep.corpus.documents import SAMPLE_CHARACTERS, Document, Reject
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal
from data_prep.filters.evaluation_ngrams import EvaluationNgrams
from data_prep.filters.rules.c4 import C4
from data_prep.filters.rules.fineweb import FineWeb
from data_prep.filters.rules.gopher_quality import GopherQuality
from data_prep.filters.rules.gopher_repetition import GopherRepetition
from data_prep.filters.rules.language import Language
from data_prep.filters.rules.own_python import OwnPython
from data_prep.filters.rules.pii import Pii
from data_prep.filters.rules.ratios import Ratios
from data_prep.filters.rules.repeated_lines import RepeatedLines
from data_prep.filters.rules.score import Score
from data_prep.filters.rules.url_blocklist import UrlBlocklist

DOCUMENT_FILTERS: list[type[DocumentFilter]] = [
    UrlBlocklist,
    Score,
    Language,
    GopherRepetition,
    GopherQuality,
    C4,
    FineWeb,
    Ratios,
    RepeatedLines,
    OwnPython,
    EvaluationNgrams,  # of what is left
    Pii,
]


LITTLE_LEFT = "little_left"
"""The rule that drops a document of which a filter leaves too little."""


def filter_notes(config: PrepConfig, record: Mapping[str, int]) -> list[str]:
    """What the user is told after the map stage, from the record of a map task."""
    notes = (document_filter.note(config, record) for document_filter in DOCUMENT_FILTERS)
    return [note for note in notes if note is not None]


def open_filters(config: PrepConfig) -> list[DocumentFilter]:
    """The filters that the configuration asks for."""
    opened = (document_filter.open(config) for document_filter in DOCUMENT_FILTERS)
    return [found for found in opened if found is not None]


def filtered(document: Document, filters: Sequence[DocumentFilter], min_characters: int) -> Document | Reject:
    """The document as the filters leave it, or the reject of the first that drops it.

    Args:
        document: cleaned.
        filters: in their order; each sees what those before it left.
        min_characters: a document that a filter shortens below this is dropped.
    """
    text = AnalysedText(document)
    for document_filter in filters:
        verdict = document_filter.check(text)
        if isinstance(verdict, str):
            changed = verdict.strip()
            if len(changed) >= min_characters:
                text = AnalysedText(dataclasses.replace(text.document, text=changed), text.language)
                continue
            detail = f"{len(changed)} characters are left, cleaning.min_characters is {min_characters}"
            verdict = Refusal(rule=LITTLE_LEFT, detail=detail, score=len(changed))
        if verdict is not None:
            reason = document_filter.reason
            return Reject(
                id=document.key,
                reason=f"{reason}.{verdict.rule}" if verdict.rule else reason,
                detail=verdict.detail,
                sample=document.text[:SAMPLE_CHARACTERS],
                score=verdict.score,
                language=text.language,
            )
    return text.document if text.language is None else dataclasses.replace(text.document, language=text.language)

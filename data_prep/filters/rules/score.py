"""A score that each record of the corpus carries."""

from typing import Self

from data_prep.config import PrepConfig
from data_prep.filters.analysis import AnalysedText
from data_prep.filters.document_filter import DocumentFilter, Refusal, below


class Score(DocumentFilter):
    """Keeps documents whose ``corpus.score_field`` is at least ``filters.score.min_score``, as FineWeb-Edu keeps those
    of an educational score of 3 (Penedo et al. 2024, arXiv 2406.17557, section 4)."""

    reason = "score"
    config_keys = ("filters.score", "corpus.score_field")

    def __init__(self, field: str, min_score: float) -> None:
        self.field, self.min_score = field, min_score

    @classmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The rule, where it is on."""
        field, least = config.corpus.score_field, config.filters.score.min_score
        return cls(field, least) if config.filters.score.enabled and field and least is not None else None

    def check(self, text: AnalysedText) -> Refusal | None:
        """The score below the limit; a document without a score has none that reaches it."""
        score = text.document.score
        if score is None:
            return Refusal(rule="missing", detail=f"no number in '{self.field}', corpus.score_field")
        return below("", score, "filters.score.min_score", self.min_score)

"""What a document filter is: it keeps, changes or drops one document at a time."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

from data_prep.config import PrepConfig
from data_prep.filters.analysis import AnalysedText


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a filter drops a document."""

    rule: str = ""
    """Which of the filter's rules, a word; empty where it has only one."""
    detail: str
    """What was found, and the key of the configuration that forbids it."""
    score: float | None = None
    """What was measured, if it is a number."""


Verdict = Refusal | str | None
"""A refusal drops the document, a text replaces the document's, None leaves it as it is."""


class DocumentFilter(abc.ABC):
    """Drops or changes documents in the map stage, before they are tokenized.

    Every process opens each filter once. What a filter answers must follow from the document and the configuration
    alone, so that the shards are the same for any number of processes. A filter that compares documents with each
    other belongs to the stage ``duplicates`` instead.
    """

    reason: ClassVar[str]
    """The word under which its rejects are counted in manifest and report, and listed in ``rejects.jsonl.gz``; a
    rule's name is added after a dot."""
    config_keys: ClassVar[tuple[str, ...]]
    """The dotted configuration keys that it reads."""

    @classmethod
    @abc.abstractmethod
    def open(cls, config: PrepConfig) -> Self | None:
        """The filter of this configuration, or None where the configuration does not ask for it.

        Raises:
            UserError: a file that it needs cannot be read.
        """

    @abc.abstractmethod
    def check(self, text: AnalysedText) -> Verdict:
        """Whether the document is dropped, changed or left as it is."""

    def counts(self) -> dict[str, int]:
        """What else the record of a map task holds, for ``note``."""
        return {}

    @classmethod
    def note(cls, _config: PrepConfig, _record: Mapping[str, int], /) -> str | None:
        """What the user is told once after the map stage, from the record of a map task, if anything."""
        return None


def above(rule: str, score: float, key: str, limit: float | None) -> Refusal | None:
    """The refusal of a score above its limit; ``key`` is that of the limit."""
    if limit is None or score <= limit:
        return None
    return Refusal(rule=rule, score=score, detail=f"{score:.4g}, {key} is {limit:g}")


def below(rule: str, score: float, key: str, limit: float | None) -> Refusal | None:
    """The refusal of a score below its limit."""
    if limit is None or score >= limit:
        return None
    return Refusal(rule=rule, score=score, detail=f"{score:.4g}, {key} is {limit:g}")

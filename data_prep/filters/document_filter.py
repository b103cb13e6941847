"""What a document filter is: it keeps or drops one document at a time, by its text alone."""

import abc
from collections.abc import Mapping
from typing import ClassVar, Self

from data_prep.config import PrepConfig
from data_prep.corpus.documents import Document


class DocumentFilter(abc.ABC):
    """Drops documents in the map stage, before they are tokenized.

    Every process opens each filter once. What a filter answers must follow from the document and the configuration
    alone, so that the shards are the same for any number of processes. A filter that compares documents with each
    other belongs to the stage ``duplicates`` instead.
    """

    reason: ClassVar[str]
    """The word under which its rejects are counted in manifest and report, and listed in ``rejects.jsonl.gz``."""
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
    def refusal(self, document: Document) -> str | None:
        """Why the document is dropped, as the detail of its reject, or None to keep it."""

    def counts(self) -> dict[str, int]:
        """What else the record of a map task holds, for ``note``."""
        return {}

    @classmethod
    def note(cls, _config: PrepConfig, _record: Mapping[str, int], /) -> str | None:
        """What the user is told once after the map stage, from the record of a map task, if anything."""
        return None

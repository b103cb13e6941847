"""The plan that every task of a preparation reads."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.config import PrepConfig
from data_prep.contract.shards import Geometry
from data_prep.corpus.documents import Partition, Source


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every task needs to know; it follows from configuration and corpus alone."""

    work: Path
    """Folder the shards are made in"""
    hash: str
    """Of everything below, of the tokenizer and of the inputs; every record bears it"""
    config: PrepConfig
    """The whole configuration"""
    sources: tuple[Source, ...]
    """The files of the corpus"""
    tasks: tuple[tuple[Partition, ...], ...]
    """The map tasks: partitions of one file, or several small files"""
    task_bytes: tuple[int, ...]
    """Text in each, decompressed"""
    geometry: Geometry
    """Shapes of the chunks"""
    special_ids: dict[str, int]
    """Role -> id"""

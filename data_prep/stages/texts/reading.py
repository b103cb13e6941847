"""The documents of a part of the corpus as the plan knows it: what changed since is refused."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from data_prep.config import CorpusConfig, PrepConfig
from data_prep.contract.command_line import UserError
from data_prep.corpus.documents import CorpusFile, Document, Partition, Reject
from data_prep.corpus.formats.gzip_index import GzipIndex, needs_index
from data_prep.corpus.reading import read_partition
from data_prep.corpus.surveys import survey
from data_prep.filters.document_filter import DocumentFilter
from data_prep.filters.evaluation_ngrams import evaluation_files
from data_prep.filters.registry import open_filters
from data_prep.stages.work_plan import (
    GZIP_INDEXES,
    PLAN,
    SurveyedFile,
    WorkPlan,
    as_json,
    pinned_configuration,
    stamp_of,
)


def filters_of(plan: WorkPlan) -> list[DocumentFilter]:
    """The filters of a plan, opened once for each process.

    Raises:
        UserError: a file that they need is not what it was when the plan was made.
    """
    return _filters(plan.work, plan.hash, plan.config)


@lru_cache(maxsize=1)
def _filters(work: Path, _plan_hash: str, config: PrepConfig) -> list[DocumentFilter]:
    identity = json.loads((work / PLAN).read_text())["identity"]
    planned = identity["evaluation_inputs"]
    found = [survey(file, config.corpus) for file in evaluation_files(config)]
    if as_json(found) != planned:
        raise UserError(
            f"the evaluation files are not what they were when {work / PLAN} was made: give them as they were"
        )
    if as_json(pinned_configuration(config)).get("filters") != identity["configuration"].get("filters"):
        raise UserError(f"a file of the filters is not what it was when {work / PLAN} was made: give it as it was")
    return open_filters(config)


def read_planned(plan: WorkPlan, partition: Partition, found: SurveyedFile) -> Iterator[Document | Reject]:
    """The cleaned documents and the rejects of one partition.

    Raises:
        UserError: the file is not what the plan surveyed.
    """
    _check_unchanged(plan, found)
    index = GzipIndex(plan.work / GZIP_INDEXES, found.survey["sha256"])
    usable = needs_index(found.file, found.survey) and index.exists()  # most files are spared the look
    yield from read_partition(
        found.file, partition, plan.config.corpus, plan.config.cleaning, index if usable else None
    )
    _check_unchanged(plan, found)  # what was read is what was hashed


def _check_unchanged(plan: WorkPlan, found: SurveyedFile) -> None:
    stamp = stamp_of(found.file)
    planned = found.survey["sha256"]
    if stamp != found.stamp and _sha256(found.file, plan.config.corpus, json.dumps(stamp)) != planned:
        raise UserError(
            f"corpus file {found.file.path or found.file.name} is not what it was when {plan.work / PLAN} was made: "
            "put it back, or give the command without --task (or with --task plan) to plan anew"
        )


@lru_cache(maxsize=1024)
def _sha256(file: CorpusFile, config: CorpusConfig, _stamp: str) -> str:
    """Of a file that was touched or copied, read once for each of its states."""
    return survey(file, config)["sha256"]

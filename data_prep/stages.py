"""Corpus -> shard folder: map (tokenize, pack), then reduce (shuffle, mask, write), in worker processes.

The plan follows from the input alone: documents are read in order and cut into groups of about
GROUP_CHARACTERS, every row's id is (group, row in the group), and order and masks are functions of that
id. So the shards are the same bytes for any number of workers.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from data_prep.command_line import UserError, config_as_dict
from data_prep.config import PrepConfig, chunk_rows, masked_per_row, tokenizer_path
from data_prep.corpus import Document, find_sources, fingerprints, read_documents
from data_prep.masking import mask_rows, stream_keys
from data_prep.packing import Rows, pack
from data_prep.shards import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Geometry,
    decode_arrays,
    encode_arrays,
    file_sha256,
    open_shards,
    write_manifest,
    write_shard,
)
from data_prep.vocabulary import load_tokenizer, ordinary_ids, special_ids, vocabulary_size

GROUP_CHARACTERS = 1 << 21
"""Text a map task gets; small enough that a few megabytes keep several workers busy"""

ENCODE_CHARACTERS = 1 << 19
"""Text handed to the tokenizer at once, which bounds the memory of its results"""

MIN_ROWS = 16
"""Rows either split needs at least: fewer give no meaningful loss"""

SHUFFLE_STREAM = 1 << 40
"""Variant number, beyond any real one, whose stream keys order the rows"""

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[str, int], None]
"""Called with the name of a stage and how many units of it have just been done."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one run of `build_shards` did."""

    root_hash: str
    """Of the folder"""
    already_there: bool
    """True when the folder was complete before, and nothing was done"""
    splits: dict[str, dict[str, int]]
    """Split -> documents, tokens, rows"""
    size: int
    """Bytes of all shards"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every task needs to know; sent to the workers."""

    work: str
    """Folder the shards are made in"""
    seq_length: int
    """Tokens a row"""
    geometry: Geometry
    """Shapes of the chunks"""
    special_ids: dict[str, int]
    """Role -> id"""
    seed: int
    """Of order and masks"""
    chunk_rows: int
    """Rows a chunk"""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One map task: consecutive documents of the corpus."""

    index: int
    """Number of the group"""
    documents: tuple[tuple[str, str], ...]
    """(split, text)"""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One reduce task: the rows of one tar, in order."""

    split: str
    """train or validation"""
    index: int
    """Number of the shard in its split"""
    sequence_ids: np.ndarray
    """[rows] u64"""


def build_shards(config: PrepConfig, progress: Progress) -> Summary:
    """Make the shard folder `config.output`, or find that it is there already.

    Work is done in OUTPUT.partial, which is renamed at the end; what a killed run left there is redone.

    Raises:
        UserError: wrong input, too little text, or a folder of another configuration at `output`.
    """
    output = Path(config.output)
    tokenizer_file = Path(tokenizer_path(config))
    tokenizer = load_tokenizer(tokenizer_file)
    sources = find_sources(config.corpus)
    identity = {
        "configuration": _pinned_configuration(config),
        "inputs": fingerprints(sources, config.corpus),
        "tokenizer": {"sha256": file_sha256(tokenizer_file)},
    }
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        return _already_there(output, identity)
    work = output.with_name(output.name + ".partial")
    geometry = Geometry(
        seq_length=config.seq_length,
        masked_per_row=masked_per_row(config),
        num_variants=config.mask.variants,
        vocab_size=vocabulary_size(tokenizer),
    )
    plan = Plan(
        work=str(work),
        seq_length=config.seq_length,
        geometry=geometry,
        special_ids=special_ids(tokenizer),
        seed=config.seed,
        chunk_rows=chunk_rows(config),
    )
    _make_work_folder(work)
    try:
        shutil.copyfile(tokenizer_file, work / TOKENIZER)
        documents = read_documents(sources, config.corpus)
        splits = _run_stages(config, plan, documents, progress)
        root_hash = write_manifest(work, _manifest(identity, plan, splits))
        shutil.rmtree(work / "groups")
        os.rename(work, output)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write the shards {output}: {error}") from error
        raise
    return _summary(root_hash, splits, already_there=False)


def split_of(document_id: str, validation_fraction: float) -> str:
    """The split a document belongs to, by a hash of its id alone."""
    return "validation" if _document_draw(document_id) < validation_fraction else "train"


def _document_draw(document_id: str) -> float:
    """Uniform in [0, 1): the first 53 bits of the id's sha256, as many as a float holds."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


# --- planning ----------------------------------------------------------------------------------------


def _pinned_configuration(config: PrepConfig) -> dict[str, Any]:
    """What decides the bytes: not where things lie nor who makes them, and defaults resolved.

    The vocabulary's configuration is left out since the tokenizer itself is pinned.
    """
    content = config_as_dict(dataclasses.replace(config, chunk_rows=chunk_rows(config)))
    content["mask"]["per_row"] = masked_per_row(config)
    for name in ("output", "tokenizer", "num_workers", "vocabulary"):
        del content[name]
    del content["corpus"]["paths"]
    return content


def _already_there(output: Path, identity: dict[str, Any]) -> Summary:
    """The summary of a complete folder with the same identity; UserError for any other."""
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is no shard folder: delete it or name another --output")
    manifest = open_shards(output).manifest
    for part, wanted in identity.items():
        if json.loads(json.dumps(wanted)) != manifest[part]:
            raise UserError(
                f"{output} holds shards made with {_difference(part, wanted, manifest[part])}: "
                "delete it or name another --output"
            )
    return _summary(manifest["root_hash"], manifest["splits"], already_there=True)


def _difference(part: str, wanted: Any, found: Any) -> str:
    if part == "configuration":
        keys = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        return f"another configuration ({', '.join(keys)} differ)" if keys else "another configuration"
    return "another tokenizer" if part == "tokenizer" else "another corpus"


def _make_work_folder(work: Path) -> None:
    try:
        if work.exists():
            shutil.rmtree(work)
        (work / "groups").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {work}: {error.strerror}") from error


def _summary(root_hash: str, splits: dict[str, Any], *, already_there: bool) -> Summary:
    counts = {name: {key: entry[key] for key in ("documents", "tokens", "rows")} for name, entry in splits.items()}
    size = sum(shard["size"] for entry in splits.values() for shard in entry["shards"])
    return Summary(root_hash=root_hash, already_there=already_there, splits=counts, size=size)


def _manifest(identity: dict[str, Any], plan: Plan, splits: dict[str, Any]) -> dict[str, Any]:
    libraries = ("narrowbert", "numpy", "safetensors", "tokenizers", "webdataset", "xxhash")
    return {
        **identity,
        **dataclasses.asdict(plan.geometry),
        "special_ids": plan.special_ids,
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
        "splits": splits,
    }


# --- running -----------------------------------------------------------------------------------------


def _run_stages(config: PrepConfig, plan: Plan, documents: Iterable[Document], progress: Progress) -> dict[str, Any]:
    """Map and reduce; the manifest's entry of every split."""
    tokenizer_file = str(Path(plan.work, TOKENIZER))
    with _Workers(config.num_workers) as workers:
        draws = _Draws()
        groups = _groups(documents, config.validation_fraction, draws)
        totals = {name: {"documents": 0, "tokens": 0, "rows": 0} for name in SPLITS}
        group_rows: dict[str, list[int]] = {name: [] for name in SPLITS}
        for counts in workers.run(_map_group, ((plan, tokenizer_file, group) for group in groups)):
            for name in SPLITS:
                totals[name] = {key: totals[name][key] + counts[name][key] for key in totals[name]}
                group_rows[name].append(counts[name]["rows"])
            progress("documents", sum(counts[name]["documents"] for name in SPLITS))
        _check_counts(totals, config, draws)
        ordinary = np.array(ordinary_ids(load_tokenizer(tokenizer_file)), dtype=np.int64)
        tasks = list(_shards(group_rows, plan.seed, config.rows_per_shard))
        splits: dict[str, Any] = {name: {**totals[name], "shards": []} for name in SPLITS}
        entries = workers.run(_reduce_shard, ((plan, ordinary, task) for task in tasks))
        for task, entry in zip(tasks, entries, strict=True):
            splits[task.split]["shards"].append(entry)
            progress("rows", entry["rows"])
    return splits


class _Workers:
    """Runs tasks in order in `num_workers` processes; one worker is this process itself."""

    def __init__(self, num_workers: int) -> None:
        self._count = num_workers or _usable_cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Workers":
        _one_thread()
        if self._count > 1:
            # Spawned, not forked: threads of the tokenizer do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._count, mp_context=context, initializer=_one_thread)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`task(item)` of every item, in their order, with at most two items a worker under way."""
        if self._pool is None:
            yield from map(task, items)
            return
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(self._pool.submit(task, item))
                running = [future for future in waiting if not future.done()]
                if len(running) >= 2 * self._count:
                    wait(running, return_when=FIRST_COMPLETED)
                while waiting and waiting[0].done():
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, most often for want of memory: try a smaller --num_workers"
            ) from error


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _one_thread() -> None:
    """Keep the tokenizer's own threads from competing with the worker processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"


class _Draws:
    """The smallest draws of the documents left in train: what fraction would move more of them."""

    def __init__(self) -> None:
        self.documents = 0
        self.smallest_left = 1.0


def _groups(documents: Iterable[Document], validation_fraction: float, draws: _Draws) -> Iterator[Group]:
    """Cut the documents into groups of about GROUP_CHARACTERS, in order."""
    current: list[tuple[str, str]] = []
    index = size = 0
    for document in documents:
        split = split_of(document.id, validation_fraction)
        draws.documents += 1
        if split == "train":
            draws.smallest_left = min(draws.smallest_left, _document_draw(document.id))
        current.append((split, document.text))
        size += len(document.text)
        if size >= GROUP_CHARACTERS:
            yield Group(index=index, documents=tuple(current))
            index, size, current = index + 1, 0, []
    if current:
        yield Group(index=index, documents=tuple(current))


def _check_counts(totals: dict[str, dict[str, int]], config: PrepConfig, draws: _Draws) -> None:
    """Refuse a corpus that leaves a split without a usable number of rows."""
    if not draws.documents:
        raise UserError("the corpus holds no text: check --corpus.paths")
    for name in SPLITS:
        rows = totals[name]["rows"]
        if rows >= MIN_ROWS:
            continue
        where = (
            f"the {name} split gets {rows} rows of {config.seq_length} tokens from "
            f"{totals[name]['documents']} of {draws.documents} documents, and needs {MIN_ROWS}"
        )
        if name == "train" or draws.documents == 1 or draws.smallest_left > 0.5:
            raise UserError(f"{where}: give more text, in more documents, or lower --seq_length")
        enough = min(0.5, np.ceil(draws.smallest_left * 1000 + 1) / 1000)
        raise UserError(
            f"{where}: give more documents, or --validation_fraction {enough:.3g} or more in place of "
            f"{config.validation_fraction:g}"
        )


def _shards(group_rows: dict[str, list[int]], seed: int, rows_per_shard: int) -> Iterator[Shard]:
    """The reduce tasks: every row of a split in one global order, cut into shards.

    Rows are sorted by a hash of (seed, sequence id): a permutation that needs no generator, and so does
    not depend on the version of one.
    """
    first = {SPLITS[0]: [0] * len(group_rows[SPLITS[0]]), SPLITS[1]: group_rows[SPLITS[0]]}
    for split in SPLITS:
        starts = zip(first[split], group_rows[split], strict=True)
        pieces = [
            np.arange(start, start + rows, dtype=np.uint64) + np.uint64(group << 32)
            for group, (start, rows) in enumerate(starts)
        ]
        ids = np.concatenate(pieces)
        ordered = ids[np.argsort(stream_keys(seed, ids, SHUFFLE_STREAM), kind="stable")]
        for index, start in enumerate(range(0, len(ordered), rows_per_shard)):
            yield Shard(split=split, index=index, sequence_ids=ordered[start : start + rows_per_shard])


# --- map ---------------------------------------------------------------------------------------------


def _group_file(work: str, split: str, group: int) -> Path:
    return Path(work, "groups", f"{split}-{group:06d}.safetensors")


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


def _map_group(task: tuple[Plan, str, Group]) -> dict[str, dict[str, int]]:
    """Tokenize and pack one group into one file a split; documents, tokens and rows of each split."""
    plan, tokenizer_file, group = task
    counts = {}
    first = 0
    for split in SPLITS:
        texts = [text for name, text in group.documents if name == split]
        documents = [ids for ids in _encode(_tokenizer(tokenizer_file), texts, plan.geometry) if len(ids)]
        special = plan.special_ids
        rows = pack(
            documents,
            seq_length=plan.seq_length,
            pad=special["pad"],
            cls=special["cls"],
            sep=special["sep"],
            dtype=plan.geometry.token_dtype,
        )
        path = _group_file(plan.work, split, group.index)
        path.write_bytes(encode_arrays({"first": np.array([first], dtype=np.uint64), **vars(rows)}))
        first += len(rows.lengths)
        counts[split] = {
            "documents": len(documents),
            "tokens": sum(map(len, documents)),
            "rows": len(rows.lengths),
        }
    return counts


def _encode(tokenizer: Tokenizer, texts: list[str], geometry: Geometry) -> Iterator[np.ndarray]:
    batch: list[str] = []
    size = 0
    for number, text in enumerate(texts, start=1):
        batch.append(text)
        size += len(text)
        if size >= ENCODE_CHARACTERS or number == len(texts):
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=geometry.token_dtype)
            batch, size = [], 0


# --- reduce ------------------------------------------------------------------------------------------


def _reduce_shard(task: tuple[Plan, np.ndarray, Shard]) -> dict[str, Any]:
    """Gather, mask and write the rows of one shard; its entry in the manifest."""
    plan, ordinary, shard = task
    rows = _gather(plan, shard)
    return write_shard(Path(plan.work), shard.split, shard.index, _chunks(plan, ordinary, shard, rows))


def _gather(plan: Plan, shard: Shard) -> Rows:
    """The rows of a shard from the group files, in the shard's order."""
    groups = (shard.sequence_ids >> np.uint64(32)).astype(np.int64)
    within = (shard.sequence_ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    count = len(within)
    input_ids = np.empty((count, plan.seq_length), dtype=plan.geometry.token_dtype)
    lengths = np.empty(count, dtype=np.uint16)
    boundaries: list[np.ndarray] = [np.empty(0, dtype=np.uint16)] * count
    for group in np.unique(groups):
        path = _group_file(plan.work, shard.split, int(group))
        arrays = decode_arrays(np.memmap(path, dtype=np.uint8, mode="r").data)
        here = np.flatnonzero(groups == group)
        there = within[here] - int(arrays["first"][0])
        input_ids[here] = arrays["input_ids"][there]
        lengths[here] = arrays["lengths"][there]
        offsets, positions = arrays["boundary_offsets"].astype(np.int64), arrays["boundary_positions"]
        for target, row in zip(here, there, strict=True):
            boundaries[target] = positions[offsets[row] : offsets[row + 1]]
    counts = np.array([len(b) for b in boundaries], dtype=np.uint32)
    return Rows(
        input_ids=input_ids,
        lengths=lengths,
        boundary_offsets=np.concatenate([np.zeros(1, np.uint32), np.cumsum(counts, dtype=np.uint32)]),
        boundary_positions=np.concatenate(boundaries),
    )


def _chunks(plan: Plan, ordinary: np.ndarray, shard: Shard, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    special = plan.special_ids
    for start in range(0, len(rows.lengths), plan.chunk_rows):
        stop = min(start + plan.chunk_rows, len(rows.lengths))
        offsets = rows.boundary_offsets[start : stop + 1]
        masks = mask_rows(
            rows.input_ids[start:stop],
            rows.lengths[start:stop],
            shard.sequence_ids[start:stop],
            masked_per_row=plan.geometry.masked_per_row,
            num_variants=plan.geometry.num_variants,
            seed=plan.seed,
            unmaskable_ids=np.array([special["cls"], special["sep"], special["pad"]]),
            mask_id=special["mask"],
            ordinary_ids=ordinary,
        )
        arrays = {
            "input_ids": rows.input_ids[start:stop],
            "lengths": rows.lengths[start:stop],
            **vars(masks),
            "sequence_ids": shard.sequence_ids[start:stop],
            "boundary_offsets": offsets - offsets[0],
            "boundary_positions": rows.boundary_positions[offsets[0] : offsets[-1]],
        }
        plan.geometry.check(arrays, stop - start)
        yield arrays

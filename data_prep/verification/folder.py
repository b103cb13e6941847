"""A whole shard folder checked, or a part of it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import file_sha256
from data_prep.contract.shards import ShardFolder, count_problems, open_folder, tokenizer_problems
from data_prep.stages.workers import Workers
from data_prep.verification.sequence_ids import SequenceIds
from data_prep.verification.shard import OpenedFolder, check_shard, sequence_ids_of

Result = TypeVar("Result")
MOST_WORKERS = 1024
Shard = tuple[str, int]
"""Split and number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """What ``verify`` found."""

    location: str
    """The folder, or its URL."""
    root_hash: str
    """sha256 over everything the manifest pins."""
    shards: int
    """Tar files that were checked."""
    chunks: int
    """Chunks in them."""
    rows: int
    """Rows of all chunks that could be read."""
    size: int
    """Bytes of these shards, as their index lists them."""
    problems: tuple[str, ...]
    """One line per problem, naming file and chunk; empty when the folder is sound."""
    part: tuple[int, int] = (1, 1)
    """Which part was checked, of how many."""

    @property
    def summary(self) -> str:
        """One line on what was checked."""
        part = f"part {self.part[0]} of {self.part[1]}: " if self.part[1] > 1 else ""
        return (
            f"{self.location}: {part}{self.shards} shards, {self.chunks} chunks, {self.rows} rows, {self.size} bytes, "
            f"root hash {self.root_hash}"
        )


def verify(folder: str | Path, *, num_workers: int = 1, part: tuple[int, int] = (1, 1)) -> Verification:
    """Check every byte of a shard folder and the legality of every row.

    A folder behind a URL is fetched into the cache. Damage is reported in ``problems``, not raised.

    Args:
        folder: a shard folder, or its URL.
        num_workers: processes; 0 is one for each usable core. With more than one a script must guard its main module,
            as ``multiprocessing`` asks for.
        part: (i, n) checks every n-th shard, from the i-th on. All n parts are the whole check: part 1 also checks
            what concerns the folder as a whole, such as sequence ids that repeat.

    Raises:
        UserError: the manifest or an index cannot be read, so that nothing further can be checked, or a number
            is out of range.

    Example:
        >>> import narrowbert
        >>> narrowbert.verify("shards/mine").problems
        ()
    """
    if not 1 <= part[0] <= part[1]:
        raise UserError(f"part {part[0]}/{part[1]}: expected 1/{part[1]} to {part[1]}/{part[1]}")
    if not 0 <= num_workers <= MOST_WORKERS:
        raise UserError(f"num_workers is {num_workers}: expected 0 to {MOST_WORKERS}")
    opened = open_folder(folder)
    shards = [(split, shard) for split, index in opened.indexes.items() for shard in range(index.num_shards)]
    mine = shards[part[0] - 1 :: part[1]]
    about_all = part[0] == 1
    sequence_ids = SequenceIds(sum(index.counts["rows"] for index in opened.indexes.values()))
    problems = [*_problems_before_shards(opened)] if about_all else []
    rows = 0
    with _Shards(OpenedFolder(location=str(folder), folder=opened), num_workers) as each:
        for found in each.do(check_shard, mine):
            problems += found.problems
            rows += len(found.sequence_ids)
            if about_all:
                sequence_ids.add(found.sequence_ids)
        if about_all:
            problems += count_problems(opened)
            if _repeat(sequence_ids, each, mine, shards):
                problems.append(f"{opened.remote or opened.path}: sequence ids are not unique")
    return Verification(
        location=str(opened.remote or opened.path),
        root_hash=opened.root_hash,
        shards=len(mine),
        chunks=sum(len(opened.indexes[split].chunks(shard)) for split, shard in mine),
        rows=rows,
        size=sum(int(opened.indexes[split].shard_sizes[shard]) for split, shard in mine),
        problems=tuple(problems),
        part=part,
    )


class _Shards:
    """Does something with many shards of a folder, in this process or in several."""

    def __init__(self, folder: OpenedFolder, num_workers: int) -> None:
        self._folder = folder
        self._workers = None if num_workers == 1 else Workers(num_workers)

    def __enter__(self) -> "_Shards":
        if self._workers is not None:
            self._workers.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)

    def do(self, action: Callable[[OpenedFolder, Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
        """``action(folder, shard)`` of every shard, in their order."""
        of_folder = functools.partial(action, self._folder)
        return map(of_folder, shards) if self._workers is None else self._workers.run(of_folder, shards)


def _problems_before_shards(folder: ShardFolder) -> Iterator[str]:
    yield from tokenizer_problems(folder)
    for entry in folder.manifest.get("files", {}).values():
        problem = folder.files.problem(entry)
        if problem:
            yield problem
        elif file_sha256(folder.path / entry["name"]) != entry["sha256"]:
            yield f"{folder.files.name(entry['name'])} is damaged (its sha256 is not the manifest's)"
    known = {index.name(shard) for index in folder.indexes.values() for shard in range(index.num_shards)}
    strange = (path for path in sorted(folder.path.glob("*.tar")) if path.name not in known)
    yield from (f"{path} is not in the manifest" for path in strange)


def _repeat(sequence_ids: SequenceIds, each: _Shards, checked: Sequence[Shard], shards: Sequence[Shard]) -> bool:
    """Whether a sequence id of all shards repeats, where those of some have been given already."""
    already = set(checked)
    rest = [shard for shard in shards if shard not in already]
    while not sequence_ids.repeat:
        for found in each.do(sequence_ids_of, rest):
            sequence_ids.add(found)
        if not sequence_ids.next_pass():
            break
        rest = list(shards)
    return sequence_ids.repeat

"""Every byte of a shard folder checked against its manifest."""

import dataclasses
import hashlib
import mmap
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data_prep.contract.shard_format import BLOCK, CHUNK_EXTENSION, chunk_key, file_sha256, member_header
from data_prep.contract.shard_index import ShardIndex, map_file, read_chunk
from data_prep.contract.shards import ShardFolder, count_problems, open_folder, tokenizer_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """What ``verify`` found."""

    location: str
    """The folder, or its URL."""
    root_hash: str
    """sha256 over everything the manifest pins."""
    shards: int
    """Tar files that belong to the folder."""
    chunks: int
    """Chunks in them."""
    rows: int
    """Rows of all chunks that could be read."""
    size: int
    """Bytes of all shards, as their index lists them."""
    problems: tuple[str, ...]
    """One line per problem, naming file and chunk; empty when the folder is sound."""

    @property
    def summary(self) -> str:
        """One line on what was checked."""
        return (
            f"{self.location}: {self.shards} shards, {self.chunks} chunks, {self.rows} rows, {self.size} bytes, "
            f"root hash {self.root_hash}"
        )


def verify(folder: str | Path) -> Verification:
    """Check every byte of a shard folder and the legality of every row.

    A folder behind a URL is fetched into the cache. Damage is reported in ``problems``, not raised.

    Raises:
        UserError: the manifest or an index cannot be read, so that nothing further can be checked.

    Example:
        >>> import narrowbert
        >>> narrowbert.verify("shards/mine").problems
        ()
    """
    opened = open_folder(folder)
    indexes = opened.indexes.values()
    known = {index.name(shard) for index in indexes for shard in range(index.num_shards)}
    problems = [*tokenizer_problems(opened), *_pinned_file_problems(opened)]
    problems += [f"{p} is not in the manifest" for p in sorted(opened.path.glob("*.tar")) if p.name not in known]
    sequence_ids: list[np.ndarray] = []
    for index in indexes:
        for shard in range(index.num_shards):
            problems += _verify_shard(opened, index, shard, sequence_ids)
    problems += count_problems(opened)
    where = opened.path if opened.remote is None else opened.remote
    every = np.concatenate(sequence_ids) if sequence_ids else np.empty(0, dtype=np.uint64)
    if len(np.unique(every)) != len(every):
        problems.append(f"{where}: sequence ids are not unique")
    return Verification(
        location=str(where),
        root_hash=opened.root_hash,
        shards=len(known),
        chunks=sum(index.num_chunks for index in indexes),
        rows=len(every),
        size=sum(index.size for index in indexes),
        problems=tuple(problems),
    )


def _pinned_file_problems(folder: ShardFolder) -> Iterator[str]:
    for entry in folder.manifest.get("files", {}).values():
        problem = folder.files.problem(entry)
        if problem:
            yield problem
        elif file_sha256(folder.path / entry["name"]) != entry["sha256"]:
            yield f"{folder.files.name(entry['name'])} is damaged (its sha256 is not the manifest's)"


def _verify_shard(folder: ShardFolder, index: ShardIndex, shard: int, sequence_ids: list[np.ndarray]) -> Iterator[str]:
    """Problems of one shard; appends the sequence ids of its sound chunks."""
    name = folder.files.name(index.name(shard))
    problem = folder.files.problem(index.file(shard))
    if problem:
        yield f"shard {problem}"
        return
    path = folder.path / index.name(shard)
    data = map_file(path)
    found: list[str] = []
    for number, chunk in enumerate(index.chunks(shard)):
        try:
            arrays = read_chunk(data, index, shard, chunk, folder.geometry)
        except ValueError as error:
            found.append(f"chunk {number}: {error}")
            continue
        sequence_ids.append(np.array(arrays["sequence_ids"]))
        for problem in _row_problems(arrays, folder):
            yield f"shard {name}, chunk {number}: {problem}"
    if hashlib.sha256(data).hexdigest() != index.file(shard)["sha256"]:
        found += [problem for problem in _frame_problems(data, index, shard) if problem not in found]
        found = found or ["chunk 0: its sha256 is not the manifest's, though every chunk is sound"]
    else:
        found += _member_problems(path, index, shard)
    yield from (f"shard {name}, {problem}" for problem in found)


def _frame_problems(data: mmap.mmap, index: ShardIndex, shard: int) -> Iterator[str]:
    """Where the bytes between the chunks (tar headers, padding, the end) are not as they were written."""
    end = 0
    chunks = index.chunks(shard)
    for number, (offset, length) in enumerate(map(index.place, chunks)):
        header = member_header(index.name(shard), number, length).tobuf(tarfile.USTAR_FORMAT)
        if data[end:offset] != header:
            yield f"chunk {number}: its tar header is damaged"
        end = offset + -(-length // BLOCK) * BLOCK
        if any(data[offset + length : end]):
            yield f"chunk {number}: the padding behind it is damaged"
    if any(data[end:]):
        yield f"chunk {len(chunks) - 1}: the end of the tar behind it is damaged"


def _member_problems(path: Path, index: ShardIndex, shard: int) -> Iterator[str]:
    """A plain walk of the tar: only the expected members, plain files, where the index says."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        yield f"chunk 0: not a tar: {error}"
        return
    chunks = index.chunks(shard)
    if len(members) != len(chunks):
        yield f"chunk {len(members)}: {len(members)} members instead of {len(chunks)}"
    for number, (member, chunk) in enumerate(zip(members, chunks, strict=False)):
        name = f"{chunk_key(index.name(shard), number)}.{CHUNK_EXTENSION}"
        if member.name != name or not member.isreg():
            yield f"chunk {number}: member {member.name!r} instead of the plain file {name!r}"
        if (member.offset_data, member.size) != index.place(chunk):
            yield f"chunk {number}: its place in the tar is not the manifest's"


def _row_problems(arrays: Mapping[str, np.ndarray], folder: ShardFolder) -> Iterator[str]:
    """What in a chunk's rows breaks the contract; one line per kind of problem, naming the first row."""
    for problem, wrong in _row_checks(arrays, folder):
        bad = wrong.reshape(len(wrong), -1).any(axis=1)
        if bad.any():
            yield f"row {int(np.argmax(bad))} {problem} ({int(bad.sum())} such rows)"
    yield from _boundary_problems(arrays, folder)


def _row_checks(arrays: Mapping[str, np.ndarray], folder: ShardFolder) -> Iterator[tuple[str, np.ndarray]]:
    """(problem, [R, ...] true where a row has it)."""
    special, vocab_size = folder.special_ids, folder.vocab_size
    ids, lengths = arrays["input_ids"], arrays["lengths"].astype(np.int64)
    positions, replacements = arrays["masked_positions"].astype(np.int64), arrays["replacement_ids"]
    column = np.arange(folder.seq_length)
    yield "has a length out of range", (lengths < 3) | (lengths > folder.seq_length)
    yield "has a token id beyond the vocabulary", ids >= vocab_size
    yield "has a replacement id beyond the vocabulary", replacements >= vocab_size
    yield "does not begin with [CLS]", ids[:, 0] != special["cls"]
    last = np.take_along_axis(ids, np.clip(lengths - 1, 0, folder.seq_length - 1)[:, None], axis=1)
    yield "does not end with [SEP]", last != special["sep"]
    yield "has a length that does not fit its padding", (ids == special["pad"]) != (column >= lengths[:, None])
    yield "has a [MASK] among its original tokens", ids == special["mask"]
    yield "has more masks than slots", arrays["num_masked"] > folder.masked_per_row
    used = np.arange(folder.masked_per_row) < arrays["num_masked"][..., None]
    yield "has a masked position outside its tokens", used & (positions >= lengths[:, None, None])
    inside = np.clip(positions, 0, folder.seq_length - 1)
    original = np.take_along_axis(ids[:, None, :], inside, axis=2)
    frame = np.array([special[role] for role in ("pad", "cls", "sep")])
    yield "has a special token or padding masked", used & np.isin(original, frame)
    yield "has a special token as replacement", used & np.isin(replacements, frame)
    yield "has masked positions that do not rise", used[..., 1:] & (np.diff(positions, axis=2) <= 0)
    yield "has an unused slot that is not neutral", ~used & ((positions != 0) | (replacements != original))


def _boundary_problems(arrays: Mapping[str, np.ndarray], folder: ShardFolder) -> Iterator[str]:
    offsets, positions = arrays["boundary_offsets"].astype(np.int64), arrays["boundary_positions"]
    counts = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(positions) or (counts < 0).any():
        yield "its boundary offsets are not rising from 0 to the number of boundaries"
        return
    rows = np.repeat(np.arange(len(counts)), counts)
    places = positions.astype(np.int64)
    outside = (places < 2) | (places >= arrays["lengths"][rows].astype(np.int64) - 1)
    if outside.any():
        yield f"row {rows[np.argmax(outside)]} has a boundary outside its tokens"
        return
    if (np.diff(rows * folder.seq_length + places) <= 0).any():
        yield "has boundaries that do not rise"
    ids, special = arrays["input_ids"], folder.special_ids
    if (ids[rows, places - 1] != special["sep"]).any():
        yield "has a boundary that no [SEP] precedes"
    # Rows of isolated pieces have a [CLS] at every boundary, all others at none.
    framed = ids[rows, places] == special["cls"]
    if framed.any() and not framed.all():
        yield "has boundaries with and without a [CLS]"
    if (ids[rows, places + 1] == special["sep"])[framed].any():
        yield "has a piece without tokens"
    inner = np.flatnonzero(ids[:, 1:] == special["cls"])
    if not np.isin(inner, (rows * (folder.seq_length - 1) + places - 1)[framed]).all():
        yield "has a [CLS] inside a row where no boundary is"

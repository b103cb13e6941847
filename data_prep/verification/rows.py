"""Whether the rows of a chunk keep the contract that ``shard_format`` states."""

from collections.abc import Iterator, Mapping

import numpy as np

from data_prep.contract.shards import ShardFolder


def row_problems(arrays: Mapping[str, np.ndarray], folder: ShardFolder) -> Iterator[str]:
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
    column = np.arange(folder.seq_length)
    yield "has a length out of range", (lengths < 3) | (lengths > folder.seq_length)
    yield "has a token id beyond the vocabulary", ids >= vocab_size
    if folder.geometry.masks_stored:
        yield "has a replacement id beyond the vocabulary", arrays["replacement_ids"] >= vocab_size
    yield "does not begin with [CLS]", ids[:, 0] != special["cls"]
    last = np.take_along_axis(ids, np.clip(lengths - 1, 0, folder.seq_length - 1)[:, None], axis=1)
    yield "does not end with [SEP]", last != special["sep"]
    yield "has a length that does not fit its padding", (ids == special["pad"]) != (column >= lengths[:, None])
    yield "has a [MASK] among its original tokens", ids == special["mask"]
    if folder.geometry.masks_stored:
        yield from _mask_checks(arrays, folder)


def _mask_checks(arrays: Mapping[str, np.ndarray], folder: ShardFolder) -> Iterator[tuple[str, np.ndarray]]:
    special, ids, lengths = folder.special_ids, arrays["input_ids"], arrays["lengths"].astype(np.int64)
    positions, replacements = arrays["masked_positions"].astype(np.int64), arrays["replacement_ids"]
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

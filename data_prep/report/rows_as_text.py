"""Rows of a shard folder as text, with their masks: what ``inspect`` and the report print."""

from collections.abc import Callable, Mapping

import numpy as np

from data_prep.contract.shards import ShardFolder
from data_prep.contract.tokenizer import load_tokenizer


def rows_as_text(folder: ShardFolder, split: str, rows: int, variant: int) -> list[str]:
    """The first rows of a split, each under a line of its numbers.

    {house->[MASK]} was masked, {house->tree} replaced, {house=} chosen but kept, and | stands before the start
    of a document.
    """
    tokenizer = load_tokenizer(folder.tokenizer_path)
    found: list[str] = []
    opened = folder.split(split)
    for index in range(len(opened.chunk_rows)):
        arrays = opened.chunk(index)
        shown = np.arange(min(rows - len(found), len(arrays["lengths"])))
        masks = opened.masks(np.full(len(shown), index), shown, np.full(len(shown), variant))
        found.extend(_row_as_text(arrays, masks, row, tokenizer.id_to_token) for row in shown.tolist())
        if len(found) == rows:
            break
    return found


def _row_as_text(
    arrays: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    row: int,
    token_of: Callable[[int], str | None],
) -> str:
    ids = arrays["input_ids"][row, : arrays["lengths"][row]]
    used = masks["num_masked"][row]
    positions = masks["masked_positions"][row, :used].tolist()
    replacements = masks["replacement_ids"][row, :used].tolist()
    stands = dict(zip(positions, replacements, strict=True))
    bounds = arrays["boundary_offsets"][row : row + 2]
    starts = set(arrays["boundary_positions"][bounds[0] : bounds[1]].tolist())
    words = []
    for position, token in enumerate(ids.tolist()):
        word = str(token_of(token))
        if position in stands:
            same = stands[position] == token
            word = f"{{{word}=}}" if same else f"{{{word}->{token_of(stands[position])}}}"
        elif word.startswith("##") and words:
            words[-1] += word[2:]
            continue
        words.append(f"| {word}" if position in starts else word)
    sequence = int(arrays["sequence_ids"][row])
    head = f"row {sequence >> 32}:{sequence & 0xFFFFFFFF}, {len(ids)} tokens, {used} masked"
    return f"{head}\n{' '.join(words)}\n"

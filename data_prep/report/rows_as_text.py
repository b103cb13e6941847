"""Rows of a shard folder as text, with their masks: what ``inspect`` and the report print."""

from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer, decoders

from data_prep.contract.shards import ShardFolder
from data_prep.contract.tokenizer import BLANK, load_tokenizer


def rows_as_text(folder: ShardFolder, split: str, rows: int, variant: int) -> list[str]:
    """The first rows of a split, each under a line of its numbers.

    {house->[MASK]} was masked, {house->tree} replaced, {house=} chosen but kept, and | stands before the start
    of a document.
    """
    pieces = _Pieces(load_tokenizer(folder.tokenizer_path))
    found: list[str] = []
    opened = folder.split(split)
    for index in range(len(opened.chunk_rows)):
        arrays = opened.chunk(index)
        shown = np.arange(min(rows - len(found), len(arrays["lengths"])))
        masks = opened.masks(np.full(len(shown), index), shown, np.full(len(shown), variant))
        found.extend(_row_as_text(arrays, masks, row, pieces) for row in shown.tolist())
        if len(found) == rows:
            break
    return found


class _Pieces:
    """What a token stands for, in bytes: one of a byte-level tokenizer may be half a letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = _bytes_of_letters() if isinstance(tokenizer.decoder, decoders.ByteLevel) else None
        self._marks_blanks = isinstance(tokenizer.decoder, decoders.Metaspace)
        special = tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in special.items() if token.special}

    def of(self, token: int) -> tuple[bool, bytes, bytes]:
        """Whether it begins a word, what it adds to a text, and what it is called by itself."""
        name = str(self._tokenizer.id_to_token(token))
        if self._marks_blanks and token not in self._special:
            content = name.removeprefix(BLANK)
            return content != name, content.replace(BLANK, " ").encode(), content.encode()
        if self._bytes is None or token in self._special:
            return not name.startswith("##"), name.removeprefix("##").encode(), name.encode()
        content = b"".join(self._bytes[letter] for letter in name)
        return content.startswith(b" "), content.removeprefix(b" "), content.removeprefix(b" ")


def _bytes_of_letters() -> dict[str, bytes]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = [*map(chr, printable), *(chr(0x100 + number) for number in range(len(others)))]
    return {letter: bytes([byte]) for letter, byte in zip(letters, [*printable, *others], strict=True)}


def _row_as_text(arrays: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], row: int, pieces: _Pieces) -> str:
    ids = arrays["input_ids"][row, : arrays["lengths"][row]]
    used = masks["num_masked"][row]
    positions = masks["masked_positions"][row, :used].tolist()
    replacements = masks["replacement_ids"][row, :used].tolist()
    stands = dict(zip(positions, replacements, strict=True))
    bounds = arrays["boundary_offsets"][row : row + 2]
    starts = set(arrays["boundary_positions"][bounds[0] : bounds[1]].tolist())
    text = b""
    for position, token in enumerate(ids.tolist()):
        begins, content, name = pieces.of(token)
        if position in stands:
            same = stands[position] == token
            content = b"{" + name + (b"=" if same else b"->" + pieces.of(stands[position])[2]) + b"}"
            begins = begins or name != pieces.of(token)[1]  # a ## that is shown needs room before it
        if position in starts:
            content, begins = b"| " + content, True
        text += b" " * (begins and bool(text)) + content
    sequence = int(arrays["sequence_ids"][row])
    head = f"row {sequence >> 32}:{sequence & 0xFFFFFFFF}, {len(ids)} tokens, {used} masked"
    return f"{head}\n{text.decode('utf-8', 'backslashreplace')}\n"

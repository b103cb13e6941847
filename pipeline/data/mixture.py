"""One shard folder or several, mixed by weight, as the one source of rows that a run reads. Imports no torch.

Weights are read as the decimal fractions that they are written as, and reduced to whole *shares*: 0.75 and 0.25 are 3
and 1. ``order`` says which folder a position of the row stream comes from.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_split import ShardSplit
from data_prep.contract.shards import ShardFolder, open_shards
from pipeline.data import order_1
from pipeline.data.order import (
    MAX_PERIOD,
    ORDER_VERSION,
    Deal,
    Dealing,
    Order,
    RowOrder,
    StepOrder,
    lanes_of,
    validation_order,
)
from pipeline.model.arithmetic import RowShape


def paths_of(path: str | Sequence[str]) -> tuple[str, ...]:
    """``data.path``, one folder or a list, as a tuple."""
    return (path,) if isinstance(path, str) else tuple(path)


class MixedSplit:
    """The same split of all folders of a mixture: their chunks in one numbering, folder after folder."""

    def __init__(self, parts: Sequence[ShardSplit]) -> None:
        self.parts = tuple(parts)
        self.num_rows = sum(part.num_rows for part in parts)
        self.chunk_rows = np.concatenate([part.chunk_rows for part in parts])
        """[chunks] rows of each chunk"""
        self.first_chunks = np.cumsum([0, *(len(part.chunk_rows) for part in parts)])[:-1]
        """[folders] number of each folder's first chunk"""

    def chunk(self, index: int) -> Mapping[str, np.ndarray]:
        """The fields of a chunk; see ``ShardSplit.chunk``.

        Raises:
            UserError: the bytes are not those that were written; names shard and chunk.
        """
        folder = int(self.folders_of(index))
        return self.parts[folder].chunk(index - int(self.first_chunks[folder]))

    def masks(self, chunks: np.ndarray, rows: np.ndarray, variants: np.ndarray) -> Mapping[str, np.ndarray]:
        """A masking of each of some rows, all arguments [B]; see ``ShardSplit.masks``.

        Raises:
            UserError: as ``chunk``.
        """
        folders = self.folders_of(chunks)
        found: dict[str, np.ndarray] = {}
        for folder in np.unique(folders).tolist():
            here = np.flatnonzero(folders == folder)
            masks = self.parts[folder].masks(chunks[here] - self.first_chunks[folder], rows[here], variants[here])
            for name, values in masks.items():
                found.setdefault(name, np.empty((len(chunks), *values.shape[1:]), values.dtype))[here] = values
        return found

    def folders_of(self, chunks: np.ndarray | int) -> np.ndarray:
        """Which folder each chunk is of."""
        return np.searchsorted(self.first_chunks, chunks, side="right") - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Opened shard folders that agree in everything a model sees, and their shares; see ``open_mixture``."""

    folders: tuple[ShardFolder, ...]
    """In the order of ``data.path``."""
    shares: tuple[int, ...]
    """Rows of each folder in sum(shares) rows."""

    @property
    def root_hash(self) -> str:
        """The folder's own, or sha256 over the (root hash, share) list of several."""
        if len(self.folders) == 1:
            return self.folders[0].root_hash
        parts = [[folder.root_hash, share] for folder, share in zip(self.folders, self.shares, strict=True)]
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """What to call each folder; of a URL without its user, password and query."""
        return tuple(_name(folder) for folder in self.folders)

    @property
    def locations(self) -> tuple[str, ...]:
        """The names, valid in any working folder."""
        return tuple(str(folder.remote or folder.path.resolve()) for folder in self.folders)

    @property
    def train_rows(self) -> tuple[int, ...]:
        """Training rows of each folder."""
        return tuple(_rows(folder, "train") for folder in self.folders)

    @property
    def num_variants(self) -> tuple[int, ...]:
        """K of each folder, mask variants of a row."""
        return tuple(folder.num_variants for folder in self.folders)

    @property
    def seq_length(self) -> int:
        """S, tokens of a row."""
        return self.folders[0].seq_length

    @property
    def masked_per_row(self) -> int:
        """P, mask slots of a row."""
        return self.folders[0].masked_per_row

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id of the tokenizer."""
        return self.folders[0].vocab_size

    @property
    def row_shape(self) -> RowShape:
        """S, P and V together."""
        return RowShape(seq_length=self.seq_length, masked_per_row=self.masked_per_row, vocab_size=self.vocab_size)

    @property
    def special_ids(self) -> dict[str, int]:
        """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""
        return self.folders[0].special_ids

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json the rows were made with."""
        return self.folders[0].tokenizer_path

    def split(self, name: str) -> MixedSplit:
        """The split ``train`` or ``validation`` of all folders."""
        return MixedSplit([folder.split(name) for folder in self.folders])

    def order(self, seed: int, global_batch_size: int, version: int = ORDER_VERSION) -> Order:
        """The rows of each step, with this data seed and so many rows a step."""
        parts = [(folder.indexes["train"].chunk_rows, folder.root_hash) for folder in self.folders]
        if version == 1:
            deal = order_1.Deal(self.shares, self.root_hash, seed)
            return order_1.MixedOrder(deal, [order_1.RowOrder(rows, root_hash, seed) for rows, root_hash in parts])
        lanes = lanes_of(self.shares, global_batch_size)
        orders = [RowOrder(*part, seed, count) for part, count in zip(parts, lanes, strict=True)]
        return StepOrder(Deal(self.shares), orders, global_batch_size)

    def deal(self, seed: int, version: int = ORDER_VERSION) -> Dealing:
        """How many rows each folder has had after any number of steps."""
        return order_1.Deal(self.shares, self.root_hash, seed) if version == 1 else Deal(self.shares)

    def validation_rows(self, max_rows: int) -> np.ndarray:
        """Numbers of the rows of the validation split to evaluate, at most ``max_rows``; see ``validation_order``."""
        return validation_order([_rows(folder, "validation") for folder in self.folders], self.shares, max_rows)


def open_mixture(path: str | Sequence[str], weights: Sequence[float] | None) -> Mixture:
    """Open one shard folder, or several to be mixed.

    Args:
        path: as in ``data.path``.
        weights: one positive number for each folder; may be None where there is one.

    Raises:
        UserError: a folder cannot be opened or has no rows, they do not agree, or the weights do not fit them.
    """
    paths = paths_of(path)
    if not paths:
        raise UserError("data.path is an empty list: give a folder made by narrowbert-prep shards, or several")
    shares = (1,) if weights is None else _whole_shares(weights, len(paths))
    folders = tuple(open_shards(path) for path in paths)
    rows = [_rows(folder, "train") for folder in folders]
    for number, folder in enumerate(folders):
        if rows[number] == 0:
            raise UserError(f"{_name(folder)} has no training rows: name other shards")
        for earlier in folders[:number]:
            _check_fit(earlier, folder)
    if len(shares) != len(folders):
        raise UserError(
            f"data.path names {len(paths)} folders and data.weights is not given: give one number above 0 for each, "
            f"such as their shares of the rows, --data.weights '{_rounded(rows)}'"
        )
    return Mixture(folders=folders, shares=shares)


def _whole_shares(weights: Sequence[float], num_folders: int) -> tuple[int, ...]:
    given = f"data.weights {list(weights)}"
    if len(weights) != num_folders or not all(0 < weight < math.inf for weight in weights):
        raise UserError(f"{given} for {num_folders} folders in data.path: give one number above 0 for each")
    exact = [Fraction(str(weight)) for weight in weights]
    unit = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * unit) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor > MAX_PERIOD:
        raise UserError(
            f"{given} come out even only after more than {MAX_PERIOD:,} rows: give rounder numbers, such as "
            f"{_rounded(exact)}"
        )
    return tuple(weight // divisor for weight in whole)


def _rounded(weights: Sequence[Fraction | int]) -> list[float]:
    """Weights of about the same ratios that ``_whole_shares`` takes."""
    return [float(max(round(Fraction(weight) / sum(weights), 3), Fraction(1, 1000))) for weight in weights]


def _check_fit(one: ShardFolder, other: ShardFolder) -> None:
    """Raise UserError where two folders cannot be in one mixture."""
    names = f"{_name(one)} and {_name(other)}"
    if one.root_hash == other.root_hash:
        raise UserError(f"{names} in data.path hold the same rows: name one of them, with the sum of their weights")
    for what in ("tokenizer", "vocab_size", "special_ids", "seq_length", "masked_per_row"):
        first, second = (_shown(folder.manifest[what]) for folder in (one, other))
        if first != second:
            raise UserError(
                f"{names} in data.path cannot be mixed: {what} is {first} in the first, {second} in the second; "
                f"prepare both with the same {what}"
            )


def _shown(value: str | int | Mapping[str, str | int]) -> str:
    return f"sha256 {value['sha256']}" if isinstance(value, Mapping) and "sha256" in value else str(value)


def _rows(folder: ShardFolder, split: str) -> int:
    return folder.manifest["splits"][split]["rows"]


def _name(folder: ShardFolder) -> str:
    return str(folder.remote or folder.path)

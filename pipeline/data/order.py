"""Which row comes at which place, for which process. To change the order of the rows, change this file alone.

Everything here is arithmetic on positions: nothing is read, and torch is not imported.

The order is a pure function of (root hashes, shares, data seed, rows of a step). A position is one number, the rows
consumed so far. So a resume computes where it is and replays nothing. Neither the number of processes nor the number
of reading threads can change which rows a step has. This is order 2; a run keeps the order that it was started with
(``run.json``), and ``order_1`` is the one before.

**Which folder.** ``Deal`` gives every folder of a mixture its turns, evenly: of any number of rows it has its
share, but for a few rows. The weights have been reduced to whole *shares* (see ``mixture``), and the turns repeat
after as many rows as the shares add up to. The n-th row that a folder is dealt is the n-th of its own endless
stream, with epochs of its own.

**Which row of the folder.** ``RowOrder`` lays out one epoch of a folder:

1. the chunks are permuted and, in that order, joined into one line of rows;
2. the line is cut into lanes of equal length (some one row longer): as many as the rows that the folder is dealt in a
   step, so that a step takes one row of each lane;
3. inside a lane, rows are permuted within windows;
4. row n of the stream is the next row of lane ``n mod lanes``.

A folder of at most ``MAX_WINDOW`` rows is one window. Every row comes exactly once per epoch. Any position is found
without visiting the ones before it.

**Which process.** ``StepOrder`` has the rows of a step stand in the order of their lanes, the lanes of all folders side
by side, and a process takes one slice of the step. So it always reads the same lanes, whatever the number of processes,
and shares with its neighbours only those at the ends of its slice.

**Validation.** ``validation_order`` says which rows are evaluated, and in which order.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

Epochs = TypeVar("Epochs", int, np.ndarray)

ORDER_VERSION = 2
"""Of runs that start now."""
MAX_PERIOD = 1_000_000
"""Most that the shares of a mixture may add up to; the turns are laid out in memory."""
MIN_WINDOW, MAX_WINDOW = 256, 4096
SHUFFLED_ROWS = 1 << 18
"""Rows of all windows of a folder together, as far as the limits of a window allow."""


def generator(*key: str | int) -> np.random.Generator:
    """Random numbers that depend on nothing but the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    # Philox is counter-based and its stream is pinned by numpy's compatibility policy.
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Dealing(Protocol):
    """How many rows each folder of a mixture has had, in any order."""

    def rows_dealt(self, position: int) -> np.ndarray:
        """[folders] rows that each folder was dealt before ``position``."""
        ...


class Order(Protocol):
    """The endless row stream of a mixture, in any order."""

    def positions_of_process(self, first: int, num_rows: int, *, data_rank: int, data_parallel_size: int) -> np.ndarray:
        """Those of the positions of the step from ``first`` to ``first + num_rows`` that one process computes."""
        ...

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """[positions] -> (folder, its epoch, its chunk, row inside the chunk), each [positions] int64."""
        ...


class Deal:
    """The turns of the folders of a mixture.

    Args:
        shares: rows of each folder in sum(shares) rows.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = np.array(shares, dtype=np.int64)
        self.period = int(self.shares.sum())
        folders = np.repeat(np.arange(len(shares)), self.shares)[_by_due_time(shares, shares)]
        self._turns = [np.flatnonzero(folders == folder) for folder in range(len(shares))]

    def rows_dealt(self, position: int) -> np.ndarray:
        """[folders] rows that each folder was dealt before ``position``."""
        periods, offset = divmod(position, self.period)
        return periods * self.shares + [np.searchsorted(turns, offset) for turns in self._turns]


class RowOrder:
    """Which row stands where in a folder's endless row stream.

    Args:
        chunk_rows: [chunks] rows of every chunk, in manifest order.
        root_hash: the shard folder's root hash.
        seed: data seed.
        lanes: rows that the folder is dealt in a step, about.
    """

    def __init__(self, chunk_rows: np.ndarray, root_hash: str, seed: int, lanes: int) -> None:
        self.chunk_rows = np.asarray(chunk_rows, dtype=np.int64)
        self.num_rows = int(self.chunk_rows.sum())
        self.lanes = lanes
        per_lane = 1 << (max(1, SHUFFLED_ROWS // lanes).bit_length() - 1)
        self.window = min(MAX_WINDOW, max(MIN_WINDOW, per_lane))
        self._key = (root_hash, seed)
        self._window_key = generator(*self._key, "windows").integers(2**63, size=1, dtype=np.uint64)
        self._chunk_line = functools.lru_cache(maxsize=2)(self._shuffle_chunks)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[rows] of the stream -> (epoch, chunk index, row inside the chunk), each [rows] int64."""
        rows = np.asarray(rows, dtype=np.int64)
        epochs, rows_of_epoch = np.divmod(rows, self.num_rows)
        rows_of_line = self._rows_of_line(epochs, rows_of_epoch)
        chunks, rows_of_chunk = np.empty_like(rows), np.empty_like(rows)
        for epoch in np.unique(epochs):
            # The line is the chunks of this epoch's order, one behind the other.
            here = np.flatnonzero(epochs == epoch)
            chunk_order, chunk_starts = self._chunk_line(int(epoch))
            places = np.searchsorted(chunk_starts, rows_of_line[here], side="right") - 1
            chunks[here], rows_of_chunk[here] = chunk_order[places], rows_of_line[here] - chunk_starts[places]
        return epochs, chunks, rows_of_chunk

    def _rows_of_line(self, epochs: np.ndarray, rows_of_epoch: np.ndarray) -> np.ndarray:
        if self.num_rows <= MAX_WINDOW:
            nowhere = np.zeros_like(epochs)
            keys = self._keys(epochs, nowhere, nowhere)
            return _permuted(rows_of_epoch, np.full_like(epochs, self.num_rows), keys)
        # An epoch begins with the lane after the one that the last has ended with, and goes round them.
        depths, turns = np.divmod(rows_of_epoch, self.lanes)
        first_lanes = epochs * self.num_rows % self.lanes
        lanes = (first_lanes + turns) % self.lanes
        short, longer = divmod(self.num_rows, self.lanes)  # the first ``longer`` lanes in turn have a row more
        longer_before = np.clip(lanes - first_lanes, 0, longer)
        longer_before += np.minimum(lanes, np.maximum(first_lanes + longer - self.lanes, 0))
        windows, places = np.divmod(depths, self.window)
        begins = windows * self.window
        sizes = np.minimum(self.window, short + (turns < longer) - begins)
        shuffled = _permuted(places, sizes, self._keys(epochs, lanes, windows))
        return lanes * short + longer_before + begins + shuffled

    def _keys(self, *parts: np.ndarray) -> np.ndarray:
        keys = np.broadcast_to(self._window_key, parts[0].shape)
        for part in parts:
            keys = _scrambled(keys + part.astype(np.uint64))
        return keys

    def _shuffle_chunks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(*self._key, "chunks", epoch).permutation(len(self.chunk_rows))
        return order, np.concatenate([[0], np.cumsum(self.chunk_rows[order])[:-1]])


class StepOrder:
    """Which row of which folder stands at a position, where each step takes the same number of positions.

    Args:
        deal: of the positions to the folders.
        orders: of each folder's own stream.
        global_batch_size: rows of a step.
    """

    def __init__(self, deal: Deal, orders: Sequence[RowOrder], global_batch_size: int) -> None:
        self._deal, self._orders, self._global_batch_size = deal, orders, global_batch_size
        counts = np.array([order.lanes for order in orders])
        by_place = _by_due_time(counts, counts)
        self._folders = np.repeat(np.arange(len(orders)), counts)[by_place]
        self._lanes = np.concatenate([np.arange(count) for count in counts])[by_place]
        self._counts = counts[self._folders]

    def positions_of_process(self, first: int, num_rows: int, *, data_rank: int, data_parallel_size: int) -> np.ndarray:
        """Those of the positions of the step from ``first`` to ``first + num_rows`` that one process computes."""
        bounds = [first + num_rows * rank // data_parallel_size for rank in (data_rank, data_rank + 1)]
        return np.arange(*bounds)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """[positions] -> (folder, its epoch, its chunk, row inside the chunk), each [positions] int64."""
        steps, places = np.divmod(np.asarray(positions, dtype=np.int64), self._global_batch_size)
        folders, rows = np.empty_like(steps), np.empty_like(steps)
        for step in np.unique(steps):
            here = np.flatnonzero(steps == step)
            folders[here], rows[here] = self._lay_out(int(step), places[here])
        epochs, chunks, rows_of_chunk = (np.empty_like(rows) for _ in range(3))
        for folder in np.unique(folders):
            here = np.flatnonzero(folders == folder)
            epochs[here], chunks[here], rows_of_chunk[here] = self._orders[folder].locate(rows[here])
        return folders, epochs, chunks, rows_of_chunk

    def _lay_out(self, step: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(folder, row of its stream) at places of a step, each [places] int64."""
        first = self._deal.rows_dealt(step * self._global_batch_size)
        dealt = self._deal.rows_dealt((step + 1) * self._global_batch_size) - first
        # Rows go round the lanes of a folder: how many come before a lane's next one, and how many of the step it has.
        before = (self._lanes - first[self._folders]) % self._counts
        turns = (dealt[self._folders] - before + self._counts - 1) // self._counts
        ends = np.cumsum(turns)
        found = np.searchsorted(ends, places, side="right")
        rounds = places - (ends[found] - turns[found])
        return self._folders[found], first[self._folders[found]] + before[found] + rounds * self._counts[found]


def lanes_of(shares: Sequence[int], global_batch_size: int) -> list[int]:
    """How many lanes each folder of a mixture has: the rows that it is dealt in a step, at least one."""
    total = sum(shares)
    return [max(1, (2 * global_batch_size * share + total) // (2 * total)) for share in shares]


def interleaved(first: int, num_rows: int, *, data_rank: int, data_parallel_size: int) -> np.ndarray:
    """Every ``data_parallel_size``-th position from ``first`` to ``first + num_rows``, those of one process."""
    return np.arange(first + data_rank, first + num_rows, data_parallel_size)


def variants_of_epochs(epochs: Epochs, num_variants: Epochs) -> Epochs:
    """Which mask variant a row has in an epoch of its folder: each in turn."""
    return epochs % num_variants


def validation_order(rows: Sequence[int], shares: Sequence[int], max_rows: int) -> np.ndarray:
    """Numbers of the validation rows to evaluate, at most ``max_rows``, each once; rows count folder after folder.

    Folders take turns by their shares; one that has no more rows leaves its turns to the others.

    Args:
        rows: validation rows of each folder.
        shares: rows of each folder in sum(shares) rows.
        max_rows: the most rows to evaluate.
    """
    first = np.cumsum([0, *rows])[:-1]
    counts = np.minimum(rows, max_rows)  # no folder can have more
    numbers = np.concatenate([start + np.arange(count) for start, count in zip(first, counts, strict=True)])
    return numbers[_by_due_time(counts, shares)[:max_rows]]


def _by_due_time(counts: Sequence[int] | np.ndarray, shares: Sequence[int] | np.ndarray) -> np.ndarray:
    """The order of ``counts`` rows of several folders, each in its turn.

    In a stream of such shares the i-th row of a folder is due at about (i + 1/2) / share.
    """
    due = [(np.arange(count) + 0.5) / share for count, share in zip(counts, shares, strict=True)]
    return np.argsort(np.concatenate(due), kind="stable")


def _permuted(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Each place below its size to another such place; for one size and key this is a permutation. All [n] int64."""
    limits = sizes.astype(np.uint64)
    # A permutation of the next power of two, gone through until it comes back below the size.
    bits = np.maximum(1, np.ceil(np.log2(np.maximum(sizes, 1)))).astype(np.uint64)
    found = _permuted_bits(places.astype(np.uint64), bits, keys)
    while (outside := np.flatnonzero(found >= limits)).size:
        found[outside] = _permuted_bits(found[outside], bits[outside], keys[outside])
    return found.astype(np.int64)


def _permuted_bits(numbers: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of that many bits, by key. All [n] uint64."""
    one = np.uint64(1)
    mask, half = (one << bits) - one, (bits + one) >> one
    for _ in range(4):
        keys = _scrambled(keys)
        numbers = (numbers * (keys | one) + (keys >> np.uint64(32))) & mask
        numbers ^= numbers >> half
    return numbers


def _scrambled(numbers: np.ndarray) -> np.ndarray:
    """Numbers that look random, other ones for other numbers (splitmix64). [n] uint64."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

"""Order 1 of the rows, which runs that an earlier version has started go on with. New runs follow ``order``.

**Which folder.** The stream is cut into periods, a multiple of the sum of the shares and at least ``MIN_PERIOD`` rows
long. In every period each folder has exactly its share of the rows, in an order that is shuffled by a generator keyed
on the period.

**Which row of the folder.** The chunks are permuted and joined into one line of rows. The line is cut into at most
``MAX_LANES`` lanes of equal length. Inside a lane, rows are permuted within windows of ``WINDOW_ROWS``. Row j of the
epoch is the next row of lane ``j mod lanes``.

**Which process.** A process takes every ``data_parallel_size``-th row of a batch. Where that size does not divide the
lanes, and in a mixture, several processes read the same chunk.
"""

import functools
from collections.abc import Sequence

import numpy as np

from pipeline.data.order import generator, interleaved

MAX_LANES = 64
WINDOW_ROWS = 4096
MIN_PERIOD = 1000
_CACHED_ROWS = 1 << 18


class Deal:
    """Deals the positions of the row stream to the folders of a mixture.

    Args:
        shares: rows of each folder in sum(shares) rows.
        root_hash: of the mixture.
        seed: data seed.
    """

    def __init__(self, shares: Sequence[int], root_hash: str, seed: int) -> None:
        self.counts = np.array(shares, dtype=np.int64) * -(-MIN_PERIOD // sum(shares))
        self.period = int(self.counts.sum())
        self._key = (root_hash, seed)
        # What the steps that are read at a time need, whatever the length of a period.
        self._order = functools.lru_cache(maxsize=max(4, _CACHED_ROWS // self.period))(self._shuffle)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[positions] -> (folder, how many rows that folder was dealt before), each [positions] int64."""
        if len(self.counts) == 1:
            return np.zeros(len(positions), dtype=np.int64), np.asarray(positions, dtype=np.int64)
        periods, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.period)
        folders, places = np.empty_like(offsets), np.empty_like(offsets)
        for period in np.unique(periods):
            in_period = periods == period
            order, before = self._order(int(period))
            folders[in_period] = order[offsets[in_period]]
            places[in_period] = period * self.counts[folders[in_period]] + before[offsets[in_period]]
        return folders, places

    def rows_dealt(self, position: int) -> np.ndarray:
        """[folders] rows that each folder was dealt before ``position``."""
        if len(self.counts) == 1:
            return np.array([position])
        period, offset = divmod(position, self.period)
        order, _ = self._order(period)
        return period * self.counts + np.bincount(order[:offset], minlength=len(self.counts))

    def _shuffle(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a period: its folder, and that folder's rows before it in the period."""
        folders = np.repeat(np.arange(len(self.counts), dtype=np.uint16), self.counts)
        order = generator(*self._key, "deal", period).permutation(folders)
        before = np.empty(self.period, dtype=np.int32)
        before[np.argsort(order, kind="stable")] = np.concatenate([np.arange(count) for count in self.counts])
        return order, before


class RowOrder:
    """Which row stands at a position of a folder's endless row stream.

    Args:
        chunk_rows: [chunks] rows of every chunk, in manifest order.
        root_hash: the shard folder's root hash.
        seed: data seed.
    """

    def __init__(self, chunk_rows: np.ndarray, root_hash: str, seed: int) -> None:
        self.chunk_rows = np.asarray(chunk_rows, dtype=np.int64)
        self.num_rows = int(self.chunk_rows.sum())
        # A power of two, so that the usual data-parallel sizes divide it.
        self.lanes = 1 << (min(MAX_LANES, max(1, self.num_rows // WINDOW_ROWS)).bit_length() - 1)
        self._key = (root_hash, seed)
        self._chunk_line = functools.lru_cache(maxsize=4)(self._shuffle_chunks)
        self._window = functools.lru_cache(maxsize=4 * MAX_LANES)(self._shuffle_window)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[positions] -> (epoch, chunk index, row inside the chunk), each [positions] int64."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, rows_of_epoch = np.divmod(positions, self.num_rows)
        chunks, rows = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            chunks[in_epoch], rows[in_epoch] = self._locate_in_epoch(int(epoch), rows_of_epoch[in_epoch])
        return epochs, chunks, rows

    def _locate_in_epoch(self, epoch: int, rows_of_epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Rows go round the lanes; a lane is walked window after window.
        lanes, rows_of_lane = rows_of_epoch % self.lanes, rows_of_epoch // self.lanes
        windows = rows_of_lane // WINDOW_ROWS
        lane_starts = _lane_starts(self.num_rows, self.lanes)
        rows_of_line = np.empty_like(rows_of_epoch)
        for lane, window in np.unique(np.stack([lanes, windows], axis=1), axis=0).tolist():
            in_window = (lanes == lane) & (windows == window)
            first = window * WINDOW_ROWS
            lane_rows = int(lane_starts[lane + 1] - lane_starts[lane])
            shuffled = self._window(epoch, lane, window, min(WINDOW_ROWS, lane_rows - first))
            rows_of_line[in_window] = lane_starts[lane] + first + shuffled[rows_of_lane[in_window] - first]
        # The line is the chunks of this epoch's order, one behind the other.
        chunk_order, chunk_starts = self._chunk_line(epoch)
        places = np.searchsorted(chunk_starts, rows_of_line, side="right") - 1
        return chunk_order[places], rows_of_line - chunk_starts[places]

    def _shuffle_chunks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(*self._key, "chunks", epoch).permutation(len(self.chunk_rows))
        return order, np.concatenate([[0], np.cumsum(self.chunk_rows[order])[:-1]])

    def _shuffle_window(self, epoch: int, lane: int, window: int, size: int) -> np.ndarray:
        # Small integers: every folder of a mixture keeps its windows.
        return generator(*self._key, "window", epoch, lane, window).permutation(size).astype(np.uint16)


class MixedOrder:
    """Which row of which folder stands at a position of the endless row stream of a mixture.

    Args:
        deal: of the positions to the folders.
        orders: of each folder's own stream.
    """

    def __init__(self, deal: Deal, orders: Sequence[RowOrder]) -> None:
        self._deal, self._orders = deal, orders

    def positions_of_process(self, first: int, num_rows: int, *, data_rank: int, data_parallel_size: int) -> np.ndarray:
        """Those of the positions from ``first`` to ``first + num_rows`` that one process computes, in order."""
        return interleaved(first, num_rows, data_rank=data_rank, data_parallel_size=data_parallel_size)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """[positions] -> (folder, its epoch, its chunk, row inside the chunk), each [positions] int64."""
        folders, places = self._deal.locate(positions)
        epochs, chunks, rows = (np.empty_like(places) for _ in range(3))
        for folder in np.unique(folders):
            of_folder = folders == folder
            epochs[of_folder], chunks[of_folder], rows[of_folder] = self._orders[folder].locate(places[of_folder])
        return folders, epochs, chunks, rows


def _lane_starts(num_rows: int, lanes: int) -> np.ndarray:
    """[lanes + 1] first row of each lane; a lane holds ceil or floor of num_rows / lanes."""
    short, longer = divmod(num_rows, lanes)
    index = np.arange(lanes + 1)
    return index * short + np.minimum(index, longer)

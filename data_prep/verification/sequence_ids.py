"""Whether numbers repeat, told exactly and in bounded memory."""

import numpy as np

_PAGE_BITS = 15
_PAGE_BYTES = (1 << _PAGE_BITS) // 8
_EVERY_PAGE = 1 << (64 - _PAGE_BITS)

MOST_PAGES = 1 << 17
"""Pages in memory at once: 512 MiB, for 4 x 10^9 sequence ids at best."""


class SequenceIds:
    """Remembers which numbers it was given: a bit for each, in pages of 2^15 numbers.

    Sequence ids fill their pages, since those of a partition count its rows. Where the pages are too many, a pass is
    about the lowest numbers alone, and ``next_pass`` asks for all of them again.

    Args:
        most_numbers: how many will be given, at most.
        most_pages: how many may be in memory.
    """

    def __init__(self, most_numbers: int, most_pages: int = MOST_PAGES) -> None:
        self.repeat = False
        """Whether a number came twice in one pass."""
        self._capacity = max(1, min(most_numbers, most_pages))
        self._start(0)

    def _start(self, first_page: int) -> None:
        self._first, self._end = first_page, _EVERY_PAGE
        # Memory that is never written takes no room.
        self._bits = np.zeros((self._capacity, _PAGE_BYTES), dtype=np.uint8)
        self._pages = np.empty(0, dtype=np.uint64)  # sorted
        self._slots = np.empty(0, dtype=np.int64)  # where the bits of each page are

    def add(self, numbers: np.ndarray) -> None:
        """Take in an array of u64."""
        numbers = np.sort(numbers)
        pages = numbers >> np.uint64(_PAGE_BITS)
        self._make_room(np.unique(pages[(pages >= self._first) & (pages < self._end)]))
        here = (pages >= self._first) & (pages < self._end)
        numbers, pages = numbers[here], pages[here]
        within = (numbers & np.uint64((1 << _PAGE_BITS) - 1)).astype(np.int64)
        places = self._slots[np.searchsorted(self._pages, pages)] * _PAGE_BYTES + (within >> 3)
        bits = (1 << (within & 7)).astype(np.uint8)
        memory = self._bits.reshape(-1)
        self.repeat |= bool((numbers[1:] == numbers[:-1]).any() or (memory[places] & bits).any())
        np.bitwise_or.at(memory, places, bits)

    def next_pass(self) -> bool:
        """Whether there are numbers that no pass has been about; if so, the next one has begun."""
        if self._end == _EVERY_PAGE:
            return False
        self._start(self._end)
        return True

    def _make_room(self, pages: np.ndarray) -> None:
        """Give a slot to each of these pages (sorted), and put off the highest ones where there are too many."""
        new = np.setdiff1d(pages, self._pages, assume_unique=True)
        if not len(new):
            return
        every = np.union1d(self._pages, new)
        if len(every) > self._capacity:
            self._end = int(every[max(1, self._capacity * 3 // 4)])
            stays = self._pages < self._end
            self._bits[self._slots[~stays]] = 0
            self._pages, self._slots, new = self._pages[stays], self._slots[stays], new[new < self._end]
        free = np.setdiff1d(np.arange(self._capacity), self._slots)[: len(new)]
        before = np.searchsorted(self._pages, new)
        self._pages, self._slots = np.insert(self._pages, before, new), np.insert(self._slots, before, free)

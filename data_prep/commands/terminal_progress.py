"""Progress on a terminal, or in a log file."""

import sys
import time
from typing import Any, Self

from data_prep.commands.arguments import PROGRAM


class TerminalProgress:
    """How far the work is: a bar on a terminal, a line for each finished stage in a log file."""

    def __enter__(self) -> Self:
        self._bar: Any = None
        self._stage = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of ``total`` units (0: unknown) begins."""
        from tqdm import tqdm

        self._end()
        self._stage, self._documents, self._began = stage, 0, time.monotonic()
        self._done, self._unit = 0, unit
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=stage, total=total or None, unit=unit, unit_scale=unit == "B", leave=False, dynamic_ncols=True
            )

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        self._done += count
        self._documents += documents
        if self._bar is not None:
            if self._documents:
                rate = self._documents / max(time.monotonic() - self._began, 1e-3)
                self._bar.set_postfix_str(f"{rate:,.0f} documents/s", refresh=False)
            self._bar.update(count)

    def note(self, message: str) -> None:
        """A line on stderr."""
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._stage:
            seconds = time.monotonic() - self._began
            size = f"{self._done / 1e6:,.1f} MB" if self._unit == "B" else f"{self._done:,} {self._unit}"
            documents = f", {self._documents:,} documents" if self._documents else ""
            rate = f", {self._done / 1e6 / max(seconds, 1e-3):.1f} MB/s" if self._unit == "B" else ""
            print(f"{self._stage}: {size}{documents} in {seconds:.1f} s{rate}", flush=True)
        self._stage = ""

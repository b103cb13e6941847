"""Progress on a terminal, or in a log file."""

import sys
import time
from typing import Any, Self

from data_prep.commands.arguments import PROGRAM
from data_prep.report.log_progress import LogProgress


class TerminalProgress:
    """How far the work is: a bar on a terminal, lines in a log file."""

    def __enter__(self) -> Self:
        self._bar: Any = None
        self._log: LogProgress | None = None
        if not sys.stderr.isatty():
            self._log = LogProgress(lambda line: print(line, flush=True)).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._log is not None:
            self._log.__exit__(*error)
        self._end()

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """A stage of ``total`` units (0: unknown) begins, ``done`` of them by an earlier start."""
        if self._log is not None:
            self._log.start(stage, total, unit, done)
            return
        from tqdm import tqdm

        self._end()
        self._documents, self._began = 0, time.monotonic()
        self._bar = tqdm(
            desc=stage, total=total or None, initial=done, unit=unit, unit_scale=unit == "B", leave=False,
            dynamic_ncols=True,
        )  # fmt: skip

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        if self._log is not None:
            self._log.advance(count, documents)
            return
        self._documents += documents
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

"""What a training shows while it runs: log lines, and a progress bar where there is room for one."""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from pipeline.processes.world import World

log = logging.getLogger("narrowbert")


def set_up_logging(run_dir: Path, world: World) -> None:
    """Rank 0 speaks on the terminal and in its log file, the others in their log files."""
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    handlers: list[logging.Handler] = []
    started_here = "NARROWBERT_LAUNCHER_PID" in os.environ
    if world.rank == 0 or started_here:  # started here, the output of ranks from 1 on *is* their log file
        handlers.append(logging.StreamHandler(sys.stdout))
    if world.rank == 0 or not started_here:
        handlers.append(logging.FileHandler(run_dir / f"logs/rank-{world.rank}.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


class Progress:
    """How far a run has come: a bar in a terminal, otherwise a log line per log.

    Args:
        train_steps: of the whole run.
        step: steps done.
        is_main: whether this is rank 0; the others show nothing.
    """

    def __init__(self, train_steps: int, step: int, *, is_main: bool) -> None:
        self._train_steps = train_steps
        self._bar = tqdm(
            total=train_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            disable=not (is_main and _terminal_has_width()),
        )

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a log after ``step`` steps."""
        line = f"loss {metrics['train/loss']:.4f}  {metrics['train/tokens_per_second']:,.0f} tokens/s"
        if metrics["train/skipped_steps"]:
            line += f"  {metrics['train/skipped_steps']:.0f} steps skipped"
        if self._bar.disable:
            remaining = (self._train_steps - step) * metrics["train/step_seconds"]
            log.info("step %d/%d  %s  ETA %.0f s", step, self._train_steps, line, remaining)
        else:
            self._bar.set_postfix_str(line)

    def close(self) -> None:
        """End the bar; what is shown later is a log line."""
        self._bar.close()


def _terminal_has_width() -> bool:
    # In a terminal of unknown size, as some containers give, a bar would show nothing: log lines instead.
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0

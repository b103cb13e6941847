"""``narrowbert train --profile STEPS``: where the time of a few steps goes."""

import logging
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.training.start import Run

log = logging.getLogger("narrowbert")

_LEFT_OUT = 2
"""First steps of a start, in which memory is found and kernels are chosen."""

_SHOWN_OPERATIONS = 40


class Profiler:
    """Records steps of rank 0 by torch's profiler; a context manager that writes what it has at its end.

    Args:
        run: this start of it.
        steps: how many to record; 0: none.
        device: of this process.
    """

    def __init__(self, run: Run, steps: int, device: torch.device) -> None:
        self._folder, self._steps = run.records.run_dir / "logs/profile", steps
        self._done, self._last = 0, run.step
        self._by_device = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._by_device else [])]
        self._profile: profile | None = None
        if steps and run.ranks.is_main:
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=_LEFT_OUT - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )

    def __enter__(self) -> Self:
        """Begin to count steps."""
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what was recorded, if that is not done yet."""
        if self._profile is None:
            return
        self._profile.stop()
        if self._done <= _LEFT_OUT:
            log.warning("nothing was profiled: the first %d steps of a start are left out", _LEFT_OUT)

    def step(self, step: int) -> None:
        """A step is done, after which there are ``step``."""
        if self._profile is None:
            return
        self._done += 1
        self._last = step
        self._profile.step()

    def _write(self, recorded: profile) -> None:
        steps = min(self._steps, self._done - _LEFT_OUT)
        name = f"steps-{self._last - steps + 1}-to-{self._last}"
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        order = "self_device_time_total" if self._by_device else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=_SHOWN_OPERATIONS)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        log.info(
            "%d steps are profiled: %s.txt (and .json.gz, for https://ui.perfetto.dev)", steps, self._folder / name
        )

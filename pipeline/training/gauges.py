"""The metrics of a log besides losses: progress, throughput, waits, and the state of the machine."""

import contextlib
import functools
import time
from collections.abc import Iterator

import psutil
import torch

from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.row_schedule import RowSchedule
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import training_flops
from pipeline.runs.attempts import Attempt

# Dense bf16 matrix FLOP/s of a device by a part of its name, the vendors' data sheets. First match counts.
_PEAK_BF16 = [
    ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H200", 989e12), ("GH200", 989e12),
    ("B200", 2250e12), ("A100", 312e12), ("A800", 312e12), ("L40S", 362e12), ("L4", 121e12), ("A10", 125e12),
]  # fmt: skip


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device, or None where it is not known: fp32, a CPU, a device not in the list."""
    if precision == "fp32":
        return None
    return next((peak for part, peak in _PEAK_BF16 if part in device_name), None)


class Gauges:
    """What a log line has besides losses: progress, throughput in other units, waits, the machine.

    Args:
        config: of the run.
        shards: what it reads.
        world_size: processes.
        attempt: which start of the run this is.
        device: of this process.
    """

    def __init__(
        self, config: RunConfig, shards: Mixture, world_size: int, attempt: Attempt, device: torch.device
    ) -> None:
        self._run_dir, self._device = config.run_dir, device
        self._schedule = RowSchedule(config.training, shards.row_shape)
        self._seq_length = shards.seq_length
        self._train_rows = shards.train_rows
        self._deal = shards.deal(config.data.seed, attempt.order_version)
        self._first_row = attempt.first_row
        layout = parse_layout(config.model.layout)
        self._row_flops = functools.cache(lambda shape: training_flops(layout, config.model, shape))
        self._world_size = world_size
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._peak = peak_flops(name, config.training.precision)
        self._process = psutil.Process()
        self._waited_seconds, self._waits = 0.0, 0
        psutil.cpu_percent()  # starts the interval of the first reading

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        """Times one step's wait for its rows."""
        started = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - started
        self._waits += 1

    def consumed(self, step: int) -> dict[str, float]:
        """Rows, tokens and epochs after ``step`` steps: what evaluations are plotted against as well."""
        rows = self._schedule.rows_before(step)
        found = {
            "train/tokens": float(rows * self._seq_length),
            "train/rows": float(rows),
            "train/masked_positions": float(self._schedule.masked_before(step)),
            "train/epoch": (self._first_row + rows) / sum(self._train_rows),
        }
        if len(self._train_rows) > 1:
            dealt = self._deal.rows_dealt(self._first_row + rows)
            found |= {f"train/source_epoch/{n}": float(dealt[n] / size) for n, size in enumerate(self._train_rows)}
        return found

    def read(self, step: int, num_steps: int, step_seconds: float) -> dict[str, float]:
        """The metrics of a log at ``step`` of ``num_steps`` steps, ``step_seconds`` each. Takes about 0.1 ms."""
        seconds, rows = num_steps * step_seconds, self._schedule.rows_by_shape(step - num_steps, step)
        flops = sum(count * self._row_flops(shape) for shape, count in rows.items()) / (seconds * self._world_size)
        found = {
            **self.consumed(step),
            "train/batch_rows": float(self._schedule.rows(step - 1)),
            "train/mask_rate": self._schedule.masked_per_row(step - 1) / self._seq_length,
            "train/sequences_per_second": sum(rows.values()) / seconds,
            "train/model_tflops_per_second": flops / 1e12,
            "train/data_wait_seconds": self._waited_seconds / max(self._waits, 1),
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_used_bytes": float(psutil.virtual_memory().used),
            "system/process_memory_bytes": float(self._process.memory_info().rss),
            "system/disk_free_bytes": float(psutil.disk_usage(self._run_dir).free),
        }
        self._waited_seconds, self._waits = 0.0, 0
        if self._peak is not None:
            found["train/mfu"] = flops / self._peak
        if self._device.type == "cuda":
            found["system/gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        return found

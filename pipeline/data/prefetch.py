"""Batches read ahead of the training by threads."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from pipeline.data.batches import Batch, TrainingData


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRows:
    """What a process computes in a step."""

    batches: list[Batch]
    """Its micro-batches, on its device."""
    weight: float
    """The sum of what they weigh, known without asking the device."""
    copied: torch.cuda.Event | None = None
    """When the copies to the device are done."""


class Prefetcher:
    """Reads the batches of the next steps in threads, and copies them to the device, during this one.

    A thread reads whole steps. What a step reads follows from its number alone, so neither the number of threads nor
    how far they are ahead changes anything. On CUDA the copies run on a stream of their own beside the computation.

    The threads start with the first ``step``. They end with ``close``, or with the ``with`` block.

    Args:
        data: what to read.
        weigh: a scalar of a micro-batch, which is still on the CPU, such as the number of its masked positions.
        device: where the batches go.
        num_workers: threads.
        prefetch_factor: steps that each of them may be ahead.
    """

    def __init__(
        self,
        data: TrainingData,
        weigh: Callable[[Batch], torch.Tensor],
        device: torch.device,
        *,
        num_workers: int,
        prefetch_factor: int,
    ) -> None:
        self._data, self._weigh, self._device = data, weigh, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._threads = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="prefetch")
        self._steps_ahead = num_workers * prefetch_factor
        self._reading: dict[int, Future[StepRows]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, step: int) -> StepRows:
        """``TrainingData.step`` on the device, and its weight.

        Raises:
            UserError: what a thread found wrong in reading this step.
        """
        wanted = range(step, step + self._steps_ahead + 1)
        for other in self._reading.keys() - set(wanted):
            self._reading.pop(other).cancel()
        for ahead in wanted:  # the nearest first: threads take them in this order
            if ahead not in self._reading:
                self._reading[ahead] = self._threads.submit(self._load, ahead)
        rows = self._reading.pop(step).result()
        if rows.copied is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(rows.copied)
            for tensor in (tensor for batch in rows.batches for tensor in batch.tensors.values()):
                tensor.record_stream(current)  # its memory is not free before the computation is done with it
        return rows

    def close(self) -> None:
        """Drop what is not being read yet, so that the end of the process does not wait for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, step: int) -> StepRows:
        batches = self._data.step(step)
        weight = float(torch.stack([self._weigh(batch) for batch in batches]).sum().double())
        if self._stream is None:
            return StepRows(batches=[batch.to(self._device) for batch in batches], weight=weight)
        with torch.cuda.stream(self._stream):
            batches = [batch.to(self._device) for batch in batches]
        copied = torch.cuda.Event()
        copied.record(self._stream)
        return StepRows(batches=batches, weight=weight, copied=copied)

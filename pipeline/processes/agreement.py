"""What all ranks decide together."""

from typing import TypeVar, cast

import torch
import torch.distributed as dist

from pipeline.processes.signals import stop_requested

T = TypeVar("T")


class Agreement:
    """What all ranks decide together, over a gloo group of its own: on CUDA the device does not wait for it."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._size = dist.get_world_size()

    def agree(self, problem: str) -> tuple[str, bool]:
        """Every rank calls this at the same point of a step.

        Args:
            problem: what went wrong on this rank; empty if nothing did.

        Returns:
            The problem of the first rank that has one, and whether any rank was asked to stop.
        """
        flags = torch.tensor([float(bool(problem)), float(stop_requested())])
        if self._size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        if flags[0]:
            problem = next(text for text in self.gather(problem) if text)
        return problem, bool(flags[1])

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        values: list[T | None] = [None] * self._size
        dist.all_gather_object(values, value, group=self._group)
        return cast(list[T], values)

"""Steps whose loss or gradient norm stands far above those of the steps before, and how an update is refused."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pipeline.engine.protocol import Engine
from pipeline.parallel.groups import data_parallel_group

WINDOW = 128
"""Steps that a step is compared with; none is judged before so many have been taken."""


class Spikes:
    """Judges steps by the ones before.

    Args:
        sigma: a spike is more than so many standard deviations above the mean; 0: no step is judged.
        history: of the checkpoint that the run resumes from, so that it decides alike.
    """

    def __init__(self, sigma: float, history: Mapping[str, Any] | None) -> None:
        self._sigma = sigma
        self._rows: list[int] = history["rows"] if history else []
        self._steps: deque[list[float]] = deque(history["steps"] if history else [], maxlen=WINDOW)
        self.found = ""
        """What stands out of the newest step, in words; empty where nothing does."""

    @property
    def is_on(self) -> bool:
        """Whether steps are judged."""
        return self._sigma > 0

    @property
    def history(self) -> dict[str, Any] | None:
        """What a checkpoint keeps: rows and masked positions of a step, loss and gradient norm of the newest steps."""
        return {"rows": self._rows, "steps": list(self._steps)} if self.is_on else None

    def begin(self, rows: Sequence[int]) -> None:
        """A step begins, of so many rows and masked positions in each. It is compared with its like alone."""
        self.found = ""
        if list(rows) != self._rows:
            self._rows = list(rows)
            self._steps.clear()

    def refuses(self, loss_sum: torch.Tensor, weight: float, gradient_norm: float) -> bool:
        """Whether a step is a spike; one that is not is remembered. Every rank calls this, and all decide alike.

        Args:
            loss_sum: scalar of this rank.
            weight: what the sum of all ranks is divided by.
            gradient_norm: of all ranks, finite.
        """
        total = loss_sum.detach().to(torch.float64, copy=True)
        dist.all_reduce(total, group=data_parallel_group())
        loss = float(total) / weight
        self.found = self._judge(loss, gradient_norm)
        # The figures are the same on every rank. Were one off by a bit, the update would still be all ranks' or none's.
        verdict = torch.tensor(float(bool(self.found)), device=loss_sum.device)
        dist.all_reduce(verdict, op=dist.ReduceOp.MAX)
        is_spike = bool(verdict)
        if not is_spike:
            self._steps.append([loss, gradient_norm])
        return is_spike

    def _judge(self, loss: float, gradient_norm: float) -> str:
        if len(self._steps) < WINDOW:
            return ""
        stands_out = []
        for number, (name, value) in enumerate((("loss", loss), ("gradient norm", gradient_norm))):
            before = [step[number] for step in self._steps]
            mean = math.fsum(before) / WINDOW
            deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in before) / WINDOW)
            if value > mean + self._sigma * deviation:
                stands_out.append(f"{name} {value:.4g} after a mean of {mean:.4g} and a deviation of {deviation:.2g}")
        return ", ".join(stands_out)


@contextlib.contextmanager
def ask_before_update(engine: Engine, refuses: Callable[[float], bool] | None) -> Iterator[None]:
    """Let DeepSpeed's step with ZeRO skip an update that is refused, as one whose gradients are not finite.

    DeepSpeed computes the norm after its check for numbers that are not finite and before the update, which it skips as
    well where the norm itself is not finite. fp16's loss scale is not to blame for a refusal and stays.

    Args:
        engine: whose ``step`` is called meanwhile.
        refuses: asked with the gradient norm, where that is finite; None: nobody is asked.
    """
    if refuses is None:
        yield
        return
    from deepspeed.runtime.utils import combine_grad_norm_groups

    optimizer, is_refused = engine.optimizer, False
    name = "_get_norm_groups" if engine.zero_optimization_stage() == 3 else "scaled_global_norm"
    compute, scaler = getattr(optimizer, name), dict(vars(optimizer.loss_scaler))

    def ask() -> torch.Tensor | list[torch.Tensor]:
        nonlocal is_refused
        found: torch.Tensor | list[torch.Tensor] = compute()
        groups = found if isinstance(found, list) else [found]
        norm = float(combine_grad_norm_groups(groups)) / optimizer.loss_scale
        is_refused = math.isfinite(norm) and refuses(norm)
        if is_refused:
            groups = [torch.full_like(torch.as_tensor(one), math.inf) for one in groups]
        return groups if isinstance(found, list) else groups[0]

    setattr(optimizer, name, ask)
    try:
        yield
    finally:
        delattr(optimizer, name)
    if is_refused:
        vars(optimizer.loss_scaler).update(scaler)

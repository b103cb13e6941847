"""Parameter groups, and the norm of the gradients."""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from pipeline.config import OptimizerConfig
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.whole_tensors import is_partitioned


def build_optimizer(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW with two groups: matrices and embeddings decay, biases and norms do not."""
    decayed, plain = [], []
    for _, parameter in named_parameters:
        # Biases and norm weights are exactly the parameters of one dimension.
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale all gradients down to a global 2-norm of ``max_norm`` (0: leave them); return the norm before.

    The norm is that of the whole model: parts of tensor-parallel ranks are added up, what every rank
    holds counts once. Nothing is read from the device.
    """
    gradients = {p: p.grad for p in parameters if p.grad is not None}
    squares = {p: torch.linalg.vector_norm(g, dtype=torch.float32).square() for p, g in gradients.items()}
    partitioned = [square for p, square in squares.items() if is_partitioned(p)]
    whole = [square for p, square in squares.items() if not is_partitioned(p)]
    total = torch.stack(whole).sum()
    if partitioned:
        of_all_ranks = torch.stack(partitioned).sum()
        dist.all_reduce(of_all_ranks, group=tensor_parallel_group())  # type: ignore[arg-type]
        total = total + of_all_ranks
    norm = total.sqrt()
    if max_norm > 0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients.values():
            gradient.mul_(factor)
    return norm

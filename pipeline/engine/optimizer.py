"""Parameter groups, and the norm of the gradients."""

from collections.abc import Iterable

import torch
import torch.distributed as dist

from pipeline.config import RunConfig
from pipeline.engine.muon import Muon, is_orthogonalised, muon_matrices
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.whole_tensors import is_partitioned


def build_optimizer(model: NarrowBertForPretraining, config: RunConfig) -> torch.optim.AdamW:
    """The configured optimizer; matrices and embeddings decay, biases and norms do not."""
    options, parameters = config.optimizer, list(model.named_parameters())
    matrices = []
    if options.type == "muon":
        matrices = muon_matrices(parameters, config.model)
    decayed, plain = [], []
    for _, parameter in parameters:
        # Biases and norm weights are exactly the parameters of one dimension.
        if not is_orthogonalised(parameter):
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if matrices:
        return Muon(matrices, groups, options, torch.float32 if config.training.precision == "fp32" else torch.bfloat16)
    return torch.optim.AdamW(
        groups,
        lr=options.lr,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
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

"""Compilation of the model's parts, all of it before the first step."""

import os
from collections.abc import Sequence

import torch

from pipeline.config import TrainingConfig
from pipeline.data.batches import Batch, example_batch
from pipeline.model.arithmetic import RowShape
from pipeline.model.attention import FrozenKeyValue
from pipeline.model.masked_lm import Embeddings, MaskedLMHead, MaskedLMLoss, NarrowBertForPretraining
from pipeline.model.sublayer import Sublayer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of weights and activations by ``training.precision``."""

BACKENDS = {"cuda": "inductor"}
"""What compiles on a kind of device; on others nothing does. On CPU inductor brings nothing (benchmarks/README.md)."""

_COMPILED = (Embeddings, Sublayer, FrozenKeyValue, MaskedLMHead, MaskedLMLoss)

# Threads that compile in one process, where nothing is said of its cores.
_MOST_THREADS = 32


def compile_and_warm_up(
    model: NarrowBertForPretraining,
    shapes: Sequence[RowShape],
    in_evaluation: RowShape,
    training: TrainingConfig,
    device: torch.device,
) -> None:
    """Compile a model for all its micro-batches, in training and in evaluation, with and without padding.

    Sublayers, head and loss are compiled alone. The sublayers of a kind share their graphs, and a sublayer hands its
    gradients over when its own part of the backward pass is done, so that ZeRO can sum them meanwhile. All that a
    run needs is compiled here: a rank that met its first padded row later would have all others wait for it.

    Args:
        model: on its device and not yet wrapped by DeepSpeed, which looks at gradients. It gets the type in which it
            computes, as DeepSpeed would give it; nothing else of its weights changes.
        shapes: of the rows in training.
        in_evaluation: of the rows in evaluations.
        training: how many rows a micro-batch has, and of what type.
        device: the model's. Nothing is done where ``BACKENDS`` does not have it.
    """
    backend = BACKENDS.get(device.type)
    if backend is None:
        return
    _limit_threads()
    _allow_graphs(len(shapes))
    model.to(DTYPES[training.precision])
    for part in model.modules():
        if isinstance(part, _COMPILED):
            part.compile(backend=backend, dynamic=False)
    cuda = [device] if device.type == "cuda" else []
    was_training = model.training
    with torch.random.fork_rng(devices=cuda):
        for padded in (False, True):
            model.train()
            for shape in shapes:
                batch = example_batch(shape, training.micro_batch_size, padded=padded).to(device)
                _forward(model, batch).backward()
                model.zero_grad(set_to_none=True)
            model.eval()
            batch = example_batch(in_evaluation, training.micro_batch_size, padded=padded).to(device)
            with torch.no_grad():
                _forward(model, batch)
    model.train(was_training)


def _forward(model: NarrowBertForPretraining, batch: Batch) -> torch.Tensor:
    return model(
        batch.input_ids,
        batch.masked_positions,
        batch.key_mask,
        batch.labels,
        batch.label_mask,
        batch.document_ids,
    ).loss_sum


def _allow_graphs(num_shapes: int) -> None:
    """As many graphs of a function as there are shapes, full or narrow, padded or not, with gradients or without.

    Beyond its limit torch computes without compiling, and only warns.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * (num_shapes + 1))


def _limit_threads() -> None:
    """As many compiling threads as this process has cores: all ranks of a machine compile at the same time."""
    from torch._inductor import config

    cores = os.environ.get("OMP_NUM_THREADS", "")  # launchers and job scripts set it to a process's share
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        config.compile_threads = min(_MOST_THREADS, int(cores) if cores.isdigit() else len(os.sched_getaffinity(0)))

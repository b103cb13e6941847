"""Run by test_communication.py in every process of a group: bytes that a step's collectives are given.

Usage: python -m tests.distributed.volume RANK WORLD_SIZE FOLDER
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

os.environ["DS_ACCELERATOR"] = "cpu"

from pipeline.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine import deepspeed_config
from pipeline.engine import deepspeed_engine as engine
from pipeline.model.arithmetic import RowShape
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.planning import communication, memory
from tests.distributed.parity import groups_of

SHAPE = RowShape(seq_length=32, masked_per_row=6, vocab_size=900)
BATCH = 8
# Large enough for parameters on both sides of ZeRO 3's threshold, and for sizes that outweigh padding.
MODEL = ModelConfig(
    layout="sf:2sf", hidden_size=256, num_attention_heads=4, ffn_hidden_size=512, max_position_embeddings=32,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
_SMALLEST = 200  # norms, counts and other single numbers are no volume


class Volume(TorchDispatchMode):
    """Adds up what the collectives under it are given, by operation and group size."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            group = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.ScriptObject) and _size(leaf))
            operation = next(
                (known for part, known in (("allreduce", "all_reduce"), ("allgather", "all_gather"),
                                           ("alltoall", "all_to_all"), ("reduce_scatter", "reduce_scatter"))
                 if part in name), name,
            )  # fmt: skip
            # The whole tensor: what an all-reduce is given and an all-gather returns; reduce-scatter takes it second.
            whole = args[1] if operation == "reduce_scatter" else args[0]
            size = sum(t.numel() * t.element_size() for t in tree_leaves(whole) if isinstance(t, torch.Tensor))
            if size >= _SMALLEST and _size(group) > 1:
                self.bytes[f"{operation} {_size(group)}"] += size
        return func(*args, **(kwargs or {}))


def _size(candidate: Any) -> int:
    try:
        return dist.ProcessGroup.unbox(candidate).size()
    except RuntimeError:
        return 0


def configurations(world_size: int) -> dict[str, RunConfig]:
    """What tensor ranks exchange does not depend on the stage; sums in fp32 are sent in the run's precision."""
    with_two: list[tuple[int, int, Literal["fp32", "bf16"], bool]] = [
        (1, 0, "fp32", False), (1, 1, "fp32", False), (1, 2, "fp32", False), (1, 3, "fp32", False),
        (1, 1, "bf16", False), (1, 2, "bf16", False), (2, 1, "fp32", False), (2, 1, "fp32", True),
    ]  # fmt: skip
    found = {}
    for split, stage, precision, recompute in with_two if world_size == 2 else [(2, 2, "fp32", False)]:
        training = TrainingConfig(
            train_steps=4, global_batch_size=BATCH, micro_batch_size=2, precision=precision,
            tensor_model_parallel_size=split, zero_stage=stage,
        )  # fmt: skip
        model = dataclasses.replace(MODEL, recompute=recompute)
        name = f"tp{split} zero{stage} {precision}{' recompute' * recompute}"
        found[name] = RunConfig(model=model, training=training)
    for name in ("tp1 zero1 fp32", "tp2 zero1 fp32", "tp2 zero2 fp32"):
        if name in found:
            found[f"{name} muon"] = dataclasses.replace(found[name], optimizer=OptimizerConfig(type="muon"))
    return found


def measured(config: RunConfig, world_size: int) -> dict[str, int]:
    """Of the second step, when ZeRO 3 knows the order of the modules."""
    training = config.training
    data_size = world_size // training.tensor_model_parallel_size
    accumulation = BATCH // (training.micro_batch_size * data_size)
    with groups_of(training.tensor_model_parallel_size):
        torch.manual_seed(0)
        padded = padded_vocab_size(SHAPE.vocab_size, training.tensor_model_parallel_size)
        built = engine.build_engine(
            config, NarrowBertForPretraining(config.model, SHAPE.vocab_size, padded), torch.device("cpu")
        )
        rows = training.micro_batch_size
        input_ids = torch.randint(0, SHAPE.vocab_size, (rows, SHAPE.seq_length))
        positions = torch.arange(SHAPE.masked_per_row).repeat(rows, 1)
        labels = torch.randint(0, SHAPE.vocab_size, (rows, SHAPE.masked_per_row))
        volume = Volume()
        for _ in range(2):
            volume = Volume()
            with volume:
                for _ in range(accumulation):
                    output = built(input_ids, positions, None, labels, torch.ones_like(labels, dtype=torch.bool))
                    built.backward(output.loss_sum)
                    engine.update_weights(built, 1.0)
        built.destroy()
    return dict(volume.bytes)


def predicted(config: RunConfig, world_size: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for collective in communication.step_communication(config, SHAPE, world_size):
        found[f"{collective.operation} {collective.group_size}"] += collective.payload
    return dict(found)


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join-{world_size}", rank=rank, world_size=world_size)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "1")
    results = {}
    for name, config in configurations(world_size).items():
        # 400,000, as if the weights were many: ZeRO 3 lets them go and gathers them again for the backward pass.
        for live in (
            (deepspeed_config.LIVE_ELEMENTS, 400_000)
            if config.training.zero_stage == 3
            else (deepspeed_config.LIVE_ELEMENTS,)
        ):
            kept = deepspeed_config.LIVE_ELEMENTS
            deepspeed_config.LIVE_ELEMENTS = communication.LIVE_ELEMENTS = memory.LIVE_ELEMENTS = live
            try:
                pair = (measured(config, world_size), predicted(config, world_size))
            finally:
                deepspeed_config.LIVE_ELEMENTS = communication.LIVE_ELEMENTS = memory.LIVE_ELEMENTS = kept
            results[name + (" few live" if live != kept else "")] = pair
    if rank == 0:
        (folder / f"volume-{world_size}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

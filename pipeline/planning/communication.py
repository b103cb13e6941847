"""Bytes that a step sends between processes, and what they cost on several nodes.

Payload is what a collective is given: the whole tensor for an all-reduce, the gathered one for an all-gather, the one
before it is split for a reduce-scatter. By a ring each of n processes sends 2 (n-1)/n of it for an all-reduce and
(n-1)/n for the others (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", 2005, section 4). With P parameters of a process after tensor parallelism, b bytes each, a micro-batches a step:

- ZeRO 0: gradients all-reduced once, P b.
- ZeRO 1: gradients all-reduced once, weights gathered once after the update: P b each. (The paper's ZeRO
  reduce-scatters the gradients, half of that; DeepSpeed all-reduces buckets and keeps its part.)
- ZeRO 2: the same, the gradients a times.
- ZeRO 3: weights gathered for every forward pass, and again for its backward pass where they were let go;
  gradients reduce-scattered a times. Small weights stay and are gathered once a step.

Tensor parallelism sums [rows, hidden] after every sublayer forward and before every sublayer backward (Shoeybi et al.,
"Megatron-LM", 2019, section 3), on all positions left of the narrowing and on the masked ones right of it. What the
optimizer and the log exchange (norms, counts; below 1 kB) is left out.
"""

import dataclasses
from typing import Literal

from data_prep.contract.command_line import UserError
from pipeline.config import LIVE_ELEMENTS, ModelConfig, RunConfig
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import RowShape
from pipeline.model.parameters import VOCABULARY_PARAMETERS, model_parameters, padded_vocab_size

PERSISTENT_ELEMENTS = 100_000
"""Weights with fewer elements are never let go by ZeRO 3 (DeepSpeed's stage3_param_persistence_threshold)."""

Operation = Literal["all_reduce", "all_gather", "reduce_scatter"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All calls of one kind in a step."""

    what: str
    """What is sent."""
    operation: Operation
    """torch.distributed's name."""
    group: Literal["data", "tensor"]
    """Between which processes."""
    group_size: int
    """How many those are."""
    payload: int
    """Bytes given to the calls of one process in one step."""

    @property
    def sent(self) -> float:
        """Bytes that a process sends for it, by a ring."""
        share = (self.group_size - 1) / self.group_size
        return self.payload * share * (2 if self.operation == "all_reduce" else 1)


def step_communication(config: RunConfig, shape: RowShape, world_size: int) -> list[Collective]:
    """What one process exchanges in one optimizer step; nothing is listed where there is nobody.

    Args:
        config: of the run.
        shape: of a row.
        world_size: processes.
    """
    training = config.training
    split = training.tensor_model_parallel_size
    data_size = world_size // split
    accumulation = training.global_batch_size // (training.micro_batch_size * data_size)
    found: list[Collective] = []
    if data_size > 1:
        for what, operation, payload in _data_parallel(config, shape, accumulation):
            found.append(
                Collective(what=what, operation=operation, group="data", group_size=data_size, payload=payload)
            )
    if split > 1:
        for what, operation, payload in _tensor_parallel(config, shape):
            found.append(
                Collective(
                    what=what, operation=operation, group="tensor", group_size=split, payload=payload * accumulation
                )
            )
    return [collective for collective in found if collective.payload]


def _unit(config: RunConfig) -> int:
    return 4 if config.training.precision == "fp32" else 2


def _data_parallel(config: RunConfig, shape: RowShape, accumulation: int) -> list[tuple[str, Operation, int]]:
    split, stage, unit = config.training.tensor_model_parallel_size, config.training.zero_stage, _unit(config)
    whole, divided = parameter_elements(config.model, shape.vocab_size, split)
    size = (whole + divided) * unit
    if stage == 0:
        return [("gradients", "all_reduce", size)]
    if stage < 3:
        times = accumulation if stage == 2 else 1
        return [("gradients", "all_reduce", size * times), ("weights", "all_gather", size)]
    # What a pass has let go when the backward pass comes to it: all but the last weights, which are used again before
    # LIVE_ELEMENTS others were.
    small = _persistent_elements(config.model, shape.vocab_size, split)
    large = whole + divided - small
    again = max(0, large - LIVE_ELEMENTS // 2)
    return [
        ("gradients", "reduce_scatter", size * accumulation),
        ("weights", "all_gather", ((large + again) * accumulation + small) * unit),
    ]


def parameter_elements(model: ModelConfig, vocab_size: int, split: int) -> tuple[int, int]:
    """Elements of one process: what every tensor-parallel rank holds whole, and its part of the rest."""
    table = model_parameters(model, padded_vocab_size(vocab_size, split))
    whole = sum(parameter.num_elements for parameter in table if parameter.partition_dim is None)
    return whole, sum(parameter.rank_elements(split) for parameter in table) - whole


def _persistent_elements(model: ModelConfig, vocab_size: int, split: int) -> int:
    """Elements of the parameters that ZeRO 3 never frees; those of the vocabulary are counted as freed."""
    table = model_parameters(model, padded_vocab_size(vocab_size, split))
    sizes = [parameter.rank_elements(split) for parameter in table if parameter.name not in VOCABULARY_PARAMETERS]
    return sum(size for size in sizes if size < PERSISTENT_ELEMENTS)


def _tensor_parallel(config: RunConfig, shape: RowShape) -> list[tuple[str, Operation, int]]:
    """Of one micro-batch."""
    layout, model = parse_layout(config.model.layout), config.model
    row = config.training.micro_batch_size * model.hidden_size * _unit(config)
    every, masked = shape.seq_length * row, shape.masked_per_row * row
    sublayers = len(layout.full) * every + len(layout.narrow) * masked
    forward = every + sublayers * (2 if model.recompute else 1)  # after the embedding and each sublayer
    # Before each sublayer, the keys and values of the frozen state, the head's two products.
    backward = sublayers + (every if layout.narrow.count("s") else 0) + 2 * masked
    # Largest logit, sum of exponentials, the label's own logit; fp32.
    loss = 3 * config.training.micro_batch_size * shape.masked_per_row * 4
    return [
        ("activations", "all_reduce", forward + backward + loss),
        ("the head's input", "all_gather", masked),
    ]


def bytes_out_of_node(collectives: list[Collective], processes_per_node: int, nodes: int) -> float:
    """Bytes a step that leave a node, rings laid so that they cross to the next node once.

    Raises:
        UserError: a tensor-parallel group lies across nodes unevenly.
    """
    if nodes == 1:
        return 0.0
    split = next((c.group_size for c in collectives if c.group == "tensor"), 1)
    if max(split, processes_per_node) % min(split, processes_per_node):
        raise UserError(
            f"training.tensor_model_parallel_size {split} and {processes_per_node} processes a node: one must divide "
            "the other"
        )
    # Neighbouring ranks form a tensor-parallel group, so every one of its ranks on a node has a data ring of its own.
    rings = {"data": min(split, processes_per_node), "tensor": 1 if split > processes_per_node else 0}
    return sum(collective.sent * rings[collective.group] for collective in collectives)


def step_seconds(compute_seconds: float, bytes_out: float, bytes_per_second: float) -> tuple[float, float]:
    """Seconds of a step, and the share of them that is not network.

    Nothing overlaps, as the engine is set up, and latency is left out: large payloads are meant.

    Args:
        compute_seconds: of a step without what leaves the node.
        bytes_out: of a node in a step.
        bytes_per_second: that a node's network carries in one direction.
    """
    total = compute_seconds + bytes_out / bytes_per_second
    return total, compute_seconds / total

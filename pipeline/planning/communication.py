"""Bytes that a step sends between processes, and what they cost on several nodes.

The payload is what a collective is given: the whole tensor for an all-reduce, the gathered one for an all-gather, the
one before it is divided for a reduce-scatter. By a ring each of n processes sends 2 (n-1)/n of it for an all-reduce and
(n-1)/n for the others (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", 2005, section 4). What a process holds after tensor parallelism is sent as follows:

- ZeRO 0: gradients all-reduced once per step.
- ZeRO 1: gradients all-reduced once per step, weights gathered once after the update. (The paper's ZeRO
  reduce-scatters the gradients, half of that; DeepSpeed all-reduces buckets and keeps its part.)
- ZeRO 2: the same, the gradients once per micro-batch.
- ZeRO 3: weights gathered for every forward pass, and again for its backward pass where they were freed;
  gradients reduce-scattered once per micro-batch. Small weights stay and are gathered once per step.

Muon with ZeRO 1 or 2 sends each piece of a momentum to the rank that orthogonalises the matrix, and pieces of the
update back: twice a process's share of the matrices. Tensor-parallel ranks gather the shards of a matrix first.

Tensor parallelism sums [positions, ``hidden_size``] after every sublayer forward and before every sublayer backward
(Shoeybi et al., "Megatron-LM", 2019, section 3): all positions left of the narrowing point, the masked ones right of
it. What the optimizer and the log exchange (norms, counts; below 1 kB) is left out.
"""

import dataclasses
from typing import Literal

from data_prep.contract.command_line import UserError
from pipeline.config import LIVE_ELEMENTS, RunConfig, micro_batches
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import RowShape
from pipeline.model.parameters import VOCABULARY_PARAMETERS, hidden_matrices, model_parameters, padded_vocab_size

PERSISTENT_ELEMENTS = 100_000
"""ZeRO 3 never frees weights with fewer elements (DeepSpeed's stage3_param_persistence_threshold)."""

Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


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
    """What one process exchanges in one optimizer step; empty for a single process.

    Args:
        config: of the run.
        shape: of a row.
        world_size: processes.
    """
    training = config.training
    tensor_size = training.tensor_model_parallel_size
    data_size = world_size // tensor_size
    accumulation = micro_batches(training, data_size)
    found: list[Collective] = []
    if data_size > 1:
        found += [
            Collective(what=what, operation=operation, group="data", group_size=data_size, payload=payload)
            for what, operation, payload in _data_parallel(config, shape, accumulation, data_size)
        ]
    if tensor_size > 1:
        found += [
            Collective(what=what, operation=operation, group="tensor", group_size=tensor_size, payload=payload)
            for what, operation, payload in _tensor_parallel(config, shape, accumulation, data_size)
        ]
    return [collective for collective in found if collective.payload]


def _unit(config: RunConfig) -> int:
    """Bytes of a weight, of a gradient on its way, and of what Muon sends."""
    return 4 if config.training.precision == "fp32" else 2


def _data_parallel(
    config: RunConfig, shape: RowShape, accumulation: int, data_size: int
) -> list[tuple[str, Operation, int]]:
    """What is sent in one step, the operation and its bytes."""
    elements = _rank_elements(config, shape)
    stage, unit = config.training.zero_stage, _unit(config)
    total = sum(elements.values())
    if stage == 0:
        return [("gradients", "all_reduce", total * unit)]
    if stage < 3:
        times = accumulation if stage == 2 else 1
        found: list[tuple[str, Operation, int]] = [
            ("gradients", "all_reduce", total * unit * times),
            ("weights", "all_gather", total * unit),
        ]
        if config.optimizer.type == "muon":
            matrices = sum(elements[matrix.name] for matrix in hidden_matrices(config.model))
            found.append(("momenta and updates", "all_to_all", 2 * matrices * unit // data_size))
        return found
    # ZeRO 3 never frees the small ones; those of the vocabulary are counted as large.
    small = sum(
        size for name, size in elements.items() if size < PERSISTENT_ELEMENTS and name not in VOCABULARY_PARAMETERS
    )
    large = total - small
    # What a pass has freed when the backward pass comes to it: all but the last weights, which are used again before
    # LIVE_ELEMENTS others were.
    again = max(0, large - LIVE_ELEMENTS // 2)
    return [
        ("gradients", "reduce_scatter", total * unit * accumulation),
        ("weights", "all_gather", ((large + again) * accumulation + small) * unit),
    ]


def _rank_elements(config: RunConfig, shape: RowShape) -> dict[str, int]:
    """Elements of each parameter that one tensor-parallel rank holds."""
    tensor_size = config.training.tensor_model_parallel_size
    table = model_parameters(config.model, padded_vocab_size(shape.vocab_size, tensor_size))
    return {parameter.name: parameter.rank_elements(tensor_size) for parameter in table}


def _tensor_parallel(
    config: RunConfig, shape: RowShape, accumulation: int, data_size: int
) -> list[tuple[str, Operation, int]]:
    """What is sent in one step, the operation and its bytes."""
    layout, model = parse_layout(config.model.layout), config.model
    row = config.training.micro_batch_size * model.hidden_size * _unit(config)
    every, masked = shape.seq_length * row, shape.masked_per_row * row
    sublayers = len(layout.full) * every + len(layout.narrow) * masked
    forward = every + sublayers * (2 if model.recompute else 1)  # after the embedding and each sublayer
    # Before each sublayer, the keys and values of the frozen state, the head's two products.
    backward = sublayers + (every if layout.narrow.count("s") else 0) + 2 * masked
    # Largest logit, sum of exponentials, the label's own logit; fp32.
    loss = 3 * config.training.micro_batch_size * shape.masked_per_row * 4
    found: list[tuple[str, Operation, int]] = [
        ("activations", "all_reduce", (forward + backward + loss) * accumulation),
        ("the head's input", "all_gather", masked * accumulation),
    ]
    if config.optimizer.type == "muon":
        # Muon's shards, before each matrix is computed whole; with ZeRO by one of the data-parallel ranks.
        matrices = sum(matrix.num_elements for matrix in hidden_matrices(model))
        owners = data_size if config.training.zero_stage else 1
        found.append(("momenta", "all_gather", matrices * _unit(config) // owners))
    return found


def bytes_out_of_node(collectives: list[Collective], processes_per_node: int, nodes: int) -> float:
    """Bytes per step that leave a node, rings laid so that they cross to the next node once.

    Raises:
        UserError: a tensor-parallel group lies across nodes unevenly.
    """
    if nodes == 1:
        return 0.0
    tensor_size = next((c.group_size for c in collectives if c.group == "tensor"), 1)
    if max(tensor_size, processes_per_node) % min(tensor_size, processes_per_node):
        raise UserError(
            f"training.tensor_model_parallel_size {tensor_size} and {processes_per_node} processes per node: "
            "one must divide the other"
        )
    # Neighbouring ranks form a tensor-parallel group, so every one of its ranks on a node has a data ring of its own.
    rings = {"data": min(tensor_size, processes_per_node), "tensor": 1 if tensor_size > processes_per_node else 0}
    return sum(collective.sent * rings[collective.group] for collective in collectives)


def step_seconds(compute_seconds: float, bytes_out: float, bytes_per_second: float) -> tuple[float, float]:
    """Seconds of a step, and the share of them that is not network.

    Nothing overlaps, as on CPU; on GPUs gradients are summed during the backward pass, and a step may be shorter.
    Latency is left out: large payloads are meant.

    Args:
        compute_seconds: of a step without what leaves the node.
        bytes_out: of a node in a step.
        bytes_per_second: that a node's network carries in one direction.
    """
    total = compute_seconds + bytes_out / bytes_per_second
    return total, compute_seconds / total

"""What of a step, a checkpoint and a resume grows with the processes. ``benchmarks/scale.py`` measures the unit costs.

Beside what collectives send (``communication``) there are: the agreement of all processes on each step, chunks that
several processes read, the bytes of checkpoints, and heartbeats.
"""

import numpy as np

from pipeline.data.order import Order
from pipeline.processes.group_sum import RING_RANKS, exchanges

RING_HOP_S, ROUND_S = 0.16e-3, 1.87e-3
"""Seconds of one message of a ring and of one round, between two processes of one busy machine, the slower of two
measurements (benchmarks/README.md, "From 8 to 4,096 ranks")."""

_FP32_BYTES = 4


def agreement_rounds(ranks: int) -> int:
    """Messages that a sum in rounds waits for, one after the other; it grows with the logarithm of the ranks."""
    ways = [exchanges(rank, ranks) for rank in range(ranks)]
    return max(len(way.partners) + 2 * (way.takes_from is not None) for way in ways)


def agreement_seconds(ranks: int, hop_s: float = RING_HOP_S, round_s: float = ROUND_S) -> float:
    """Seconds in which all ranks agree on a step, by the way that so many take.

    Args:
        ranks: of the run.
        hop_s: of one message of the ring, of which there are 2 (ranks - 1).
        round_s: of one round.
    """
    return agreement_rounds(ranks) * round_s if ranks > RING_RANKS else 2 * (ranks - 1) * hop_s


def readers_of_chunk(order: Order, global_batch_size: int, data_parallel_size: int, steps: int) -> float:
    """How many data-parallel ranks read a chunk, in the mean over the chunks that the first steps touch. Exact.

    Args:
        order: of the rows.
        global_batch_size: rows of a step.
        data_parallel_size: ranks that divide them.
        steps: how many to replay.
    """
    rank_of = np.empty(global_batch_size, dtype=np.int64)
    for rank in range(data_parallel_size):
        own = order.positions_of_process(0, global_batch_size, data_rank=rank, data_parallel_size=data_parallel_size)
        rank_of[own] = rank
    found = []
    for step in range(steps):
        rows = step * global_batch_size + np.arange(global_batch_size)
        folders, epochs, chunks, _ = order.locate(rows)
        touched = np.stack([folders, epochs, chunks, rank_of], axis=1).astype(np.int64)
        found.append(np.unique(touched, axis=0))
    pairs = np.unique(np.concatenate(found), axis=0)
    return len(pairs) / len(np.unique(pairs[:, :3], axis=0))


def checkpoint_bytes(parameters: int, moments: int) -> int:
    """Bytes of a checkpoint, which all processes write together: weights and moments in fp32."""
    return _FP32_BYTES * (parameters + moments)


def resume_bytes(parameters: int, moments: int, ranks: int, zero_stage: int) -> float:
    """Bytes that each process reads of a checkpoint: the weights, and its share of the fp32 state."""
    return _FP32_BYTES * (parameters + (parameters + moments) / (ranks if zero_stage else 1))

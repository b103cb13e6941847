"""What a step, a start and a resume cost that grows with the ranks, for 8 to 4,096 of them, from measured unit costs.

- *Readers of a chunk*: the two orders of the rows are replayed for every rank, in folders of 30,000 chunks of 256 rows,
  27 rows of a step on each rank. This is exact.
- *Order*: milliseconds of one rank to find the rows of its share of a step. Measured.
- *Agreement*: above 32 ranks the three numbers are summed in rounds by the logarithm of the ranks; up to there gloo
  sends them round a ring, 2 (ranks - 1) hops. Both are shown. A round and a hop are measured between two real processes
  of this machine, each with a core. More processes are measured and printed beside it: where they are more than the
  cores, their time is mostly that of waiting for a core. A network has hops of its own (``--hop_us``, taken for both).
  The agreement is under way while a step is computed, and holds up only steps that are shorter than it.
- *Heartbeats*: files written in ten seconds, one a node of 8 ranks.
- *Resume*: bytes a rank reads for each parameter, with ZeRO 1: the weight, and its share of the fp32 state.

``--start`` measures instead what a rank needs to open its rows: a folder of 100 chunks and one of 400,000. Each is a
process of its own; medians of the rounds.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from opening import make_folder
from results import record

from pipeline.data import order_1
from pipeline.data.order import Deal, Order, RowOrder, StepOrder, lanes_of
from pipeline.planning.growth import agreement_rounds, readers_of_chunk, resume_bytes

RANKS = (8, 96, 1000, 1024, 4096)
CHUNKS, CHUNK_ROWS, ROWS_OF_RANK = 30_000, 256, 27
RANKS_OF_NODE = 8
MIXTURES = {"one folder": (1,), "3 to 1": (3, 1), "70, 20, 9, 1": (70, 20, 9, 1)}
REDUCTIONS = 200

REDUCE = """
import json, statistics, sys, time, torch, torch.distributed as dist
from pipeline.processes.group_sum import DoublingSum
rank, size, port = map(int, sys.argv[1:])
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
rounds = DoublingSum(dist.new_group(backend="gloo"))
numbers = torch.zeros(3, dtype=torch.float64)
found = {}
for name, add in {"ring": dist.all_reduce, "rounds": lambda numbers: rounds.begin(numbers).result()}.items():
    seconds = []
    for _ in range(%d):
        started = time.perf_counter()
        add(numbers)
        seconds.append(time.perf_counter() - started)
    found[name] = statistics.median(seconds)
dist.barrier()
if rank == 0:
    print(json.dumps(found))
"""

START = """
import gc, json, pathlib, sys, time
import numpy, torch
import pipeline.data.batches as batches
from pipeline.config import TrainingConfig
from pipeline.data.mixture import open_mixture

def kilobytes():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

gc.collect()
before, started = kilobytes(), time.perf_counter()
data = batches.TrainingData(open_mixture(sys.argv[1], None),
                            TrainingConfig(global_batch_size=27 * 1024, micro_batch_size=27),
                            seed=1, data_rank=5, data_parallel_size=1024)
positions = data._order.positions_of_process(0, 27 * 1024, data_rank=5, data_parallel_size=1024)
data._order.locate(positions)
print(json.dumps({"seconds": time.perf_counter() - started, "bytes": 1024 * (kilobytes() - before)}))
"""


def orders(shares: Sequence[int], ranks: int) -> tuple[Order, Order]:
    """Order 1 and order 2 of a mixture of equal folders."""
    rows, batch = np.full(CHUNKS, CHUNK_ROWS), ranks * ROWS_OF_RANK
    first = order_1.MixedOrder(
        order_1.Deal(shares, "mixture", 1),
        [order_1.RowOrder(rows, f"folder {n}", 1) for n in range(len(shares))],
    )
    lanes = lanes_of(shares, batch)
    second = [RowOrder(rows, f"folder {n}", 1, count) for n, count in enumerate(lanes)]
    return first, StepOrder(Deal(shares), second, batch)


def order_milliseconds(order: Order, ranks: int) -> float:
    """Of one rank, for one step."""
    batch, taken = ranks * ROWS_OF_RANK, []
    for step in range(20):
        started = time.perf_counter()
        order.locate(order.positions_of_process(step * batch, batch, data_rank=ranks // 2, data_parallel_size=ranks))
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def reduction_milliseconds(size: int) -> dict[str, float]:
    """Median time of a sum among so many processes of this machine, by a ring and in rounds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    code = REDUCE % REDUCTIONS
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(rank), str(size), str(port)],
            stdout=subprocess.PIPE, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]  # fmt: skip
    printed = [process.communicate(timeout=300)[0] for process in processes]
    return {name: 1e3 * seconds for name, seconds in json.loads(printed[0].splitlines()[-1]).items()}


def replay(most_processes: int, hop_us: float, replayed_rows: int) -> list[dict[str, str]]:
    """The rows of the table."""
    measured = {size: reduction_milliseconds(size) for size in (2, 4, 8, 16) if size <= most_processes}
    for size, taken in measured.items():
        print(f"{size} processes agree in {taken['rounds']:.2f} ms, by a ring in {taken['ring']:.2f} ms", flush=True)
    hop = hop_us / 1e3 if hop_us else measured[2]["ring"] / 2
    one_round = hop_us / 1e3 if hop_us else measured[2]["rounds"]
    rows = []
    for ranks in RANKS:
        row = {"ranks": f"{ranks:,}"}
        for name, shares in MIXTURES.items():
            first, second = (
                readers_of_chunk(order, ranks * ROWS_OF_RANK, ranks, max(2, replayed_rows // (ranks * ROWS_OF_RANK)))
                for order in orders(shares, ranks)
            )
            row[f"readers, {name}"] = f"{second:.2f} (order 1: {first:.1f})"
        row["order"] = f"{order_milliseconds(orders((3, 1), ranks)[1], ranks):.1f} ms"
        row["agreement"] = f"{agreement_rounds(ranks) * one_round:.1f} ms (ring: {2 * (ranks - 1) * hop:.0f})"
        row["heartbeats in 10 s"] = f"{-(-ranks // RANKS_OF_NODE):,}"
        row["resume"] = f"{resume_bytes(1, 2, ranks, 1):.2f} B (before 16)"
        rows.append(row)
        print(" | ".join(f"{name}: {cell}" for name, cell in row.items()), flush=True)
    return rows


def starts(rounds: int) -> list[dict[str, str]]:
    """What a rank needs to open folders of few and many chunks."""
    rows = []
    for shards, chunks in ((10, 100), (4_000, 400_000)):
        with tempfile.TemporaryDirectory() as name:
            make_folder(Path(name), shards, chunks)
            command = [sys.executable, "-W", "ignore", "-c", START, name]
            found = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds)]
        seconds, size = (statistics.median(one[key] for one in found) for key in ("seconds", "bytes"))
        rows.append({"chunks": f"{chunks:,}", "seconds": f"{seconds:.2f}", "memory": f"{size / 1e6:.0f} MB"})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", action="store_true", help="measure a rank's start in place of the replay")
    parser.add_argument("--rounds", type=int, default=5, help="of --start")
    parser.add_argument("--most_processes", type=int, default=8, help="real ones, of the reduction: up to 16")
    parser.add_argument("--hop_us", type=float, default=0.0, help="of a network; 0 takes the one measured here")
    parser.add_argument("--replayed_rows", type=int, default=1_000_000, help="of each cell")
    parser.add_argument("--record", action="store_true", help="append the rows to results/scale.jsonl")
    arguments = parser.parse_args()
    if arguments.start:
        rows = starts(arguments.rounds)
    else:
        rows = replay(arguments.most_processes, arguments.hop_us, arguments.replayed_rows)
    if arguments.record:
        record("scale", "table-2" if arguments.start else "table-1", rows)


if __name__ == "__main__":
    main()

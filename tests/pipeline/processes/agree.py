"""One of several ranks that agree, each in its own way; prints what it has learnt as JSON.

Usage: python -m tests.pipeline.processes.agree RANK SIZE PORT
"""

import json
import os
import sys
import time

import torch.distributed as dist

from pipeline.engine.deepspeed_engine import initialise_process_group
from pipeline.processes import signals
from pipeline.processes.agreement import Agreement
from pipeline.processes.world import World


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3], GLOO_SOCKET_IFNAME="lo")
    initialise_process_group(World(rank=rank, local_rank=rank, size=size))
    agreement = Agreement()
    counted = agreement.begin("", 2.0**50 + rank).wait()
    dist.barrier()
    started = time.monotonic()
    if rank == size - 1:
        time.sleep(1.0)
    pending = agreement.begin("")
    begun = time.monotonic() - started
    quiet = pending.wait()
    if rank == 1:
        signals._stop_requested = True
    stopped = agreement.begin("").wait()
    failed = agreement.begin(f"rank {rank} has no rows" if rank else "").wait()
    numbers = agreement.gather_number(rank / 3)
    found = {
        "weight": counted.weight, "begun": begun, "stops": [quiet.stop, stopped.stop], "problem": failed.problem,
        "problems": [counted.problem, quiet.problem], "numbers": numbers,
        "lazy": os.environ["TORCH_GLOO_LAZY_INIT"],
    }  # fmt: skip
    dist.barrier()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""One of several ranks whose first 1, 2, 3, ... add up numbers; prints what they get as JSON.

Each sum is compared with torch's all-reduce of the same numbers.

Usage: python -m tests.pipeline.processes.sum_over_groups RANK SIZE PORT
"""

import datetime
import json
import os
import random
import sys
import time

import torch
import torch.distributed as dist

from pipeline.processes.group_sum import DoublingSum

LIMIT = datetime.timedelta(seconds=60)
SHORT_LIMIT = datetime.timedelta(seconds=2)


def numbers_of(seed: int, rank: int) -> torch.Tensor:
    """Counts, flags, and fractions of any size: another shape for each seed, the same one on all ranks."""
    length = random.Random(seed).randrange(1, 70)
    generator = random.Random(f"{seed} {rank}")
    if seed % 2:
        values = [float(generator.choice([0, 1, generator.getrandbits(48)])) for _ in range(length)]
    else:
        values = [generator.gauss(0, 1) * 10 ** generator.randrange(-9, 9) for _ in range(length)]
    return torch.tensor(values, dtype=torch.float64)


def compare(group: dist.ProcessGroup) -> dict[str, object]:
    """Sums of many shapes, some begun before the last ones were asked for."""
    summer = DoublingSum(group)
    found = []
    for seed in range(0, 40, 4):
        pending = [(one, summer.begin(numbers_of(one, group.rank()))) for one in range(seed, seed + 4)]
        found += [(one, future.result()) for one, future in pending]
    differing = []
    for seed, ours in found:
        theirs = numbers_of(seed, group.rank())
        dist.all_reduce(theirs, group=group)
        same = torch.equal(ours, theirs) if seed % 2 else torch.allclose(ours, theirs, rtol=1e-12, atol=1e-3)
        if not same:
            differing.append(seed)
    summer.close()
    return {"differing": differing, "bits": [ours.numpy().tobytes().hex() for _, ours in found]}


def fail(group: dist.ProcessGroup) -> dict[str, object]:
    """Rank 1 never begins: what the others learn, and after how many seconds."""
    summer, started = DoublingSum(group), time.monotonic()
    if group.rank() == 1:
        time.sleep(2 * SHORT_LIMIT.total_seconds())
        return {}
    errors = [type(summer.begin(torch.ones(3)).exception()).__mro__ for _ in range(2)]
    return {"errors": [RuntimeError in types for types in errors], "seconds": time.monotonic() - started}


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3], GLOO_SOCKET_IFNAME="lo")
    os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=LIMIT)
    found = {}
    for members in range(1, size + 1):
        group = dist.new_group(range(members), backend="gloo")
        if rank < members:
            found[members] = compare(group)
    group = dist.new_group(range(3), backend="gloo", timeout=SHORT_LIMIT)
    failed = fail(group) if rank < 3 else {}
    dist.barrier()
    print(json.dumps({"found": found, "failed": failed}))


if __name__ == "__main__":
    main()

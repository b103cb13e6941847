"""Stands in for ``python -P -m pipeline train --config RUN_DIR/submission/config.yaml`` where only the job is tested.

Every start of a rank takes the next word of RUN_DIR/acts and does what it says; what it saw is in RUN_DIR/seen.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    run_dir = Path(sys.argv[-1]).parents[1]
    rank = int(os.environ["SLURM_PROCID"])
    seen = run_dir / "seen"
    seen.mkdir(exist_ok=True)
    start = len(list(seen.glob(f"*-{rank}.json")))
    variables = ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURMD_NODENAME", "RANK", "ODD_VALUE", "SLURM_LOCALID")
    record = {"argv": sys.argv, "folder": str(Path.cwd()), **{name: os.environ.get(name) for name in variables}}
    told: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: told.append(number))
    (seen / f"{start}-{rank}.json").write_text(json.dumps(record))
    # As ranks do: nobody goes on before all are there. One that ended first would have Slurm end the others unseen.
    together = time.monotonic() + 30
    while len(list(seen.glob(f"{start}-*.json"))) < int(os.environ["SLURM_NTASKS"]) and time.monotonic() < together:
        time.sleep(0.02)
    act = (run_dir / "acts").read_text().split()[start]
    print(f"start {start} does {act}", flush=True)
    if act == "save":  # and crash
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        (run_dir / "checkpoints/latest").write_text("step-00000001")
        sys.exit(1)
    if act == "done" and rank == 0:
        (run_dir / "DONE").write_text("")
    if act == "crash" and rank == 1:
        sys.exit(1)
    if act == "mistake" and rank == 1:
        sys.exit(2)
    if act in ("wait", "crash", "mistake"):  # the others of a crash hang, as in a collective
        deadline = time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3 * rank)  # some are slower to end: none may be killed for that
        if act == "wait":
            (run_dir / f"saved-{start}-{rank}").write_text("")
            sys.exit(85)


if __name__ == "__main__":
    main()

"""Read a checkpoint of a run with safetensors alone: ``plain_safetensors.py RUN_DIR``."""

import json
import sys
from pathlib import Path

from safetensors import safe_open


def main(run_dir: str) -> None:
    """Print the step of the newest checkpoint and the shape of every weight."""
    checkpoints = Path(run_dir) / "checkpoints"
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    step = json.loads((newest / "trainer.json").read_text())["step"]
    print(f"step {step}")
    for path in sorted(newest.glob("weights-*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                print(name, tensors.get_slice(name).get_shape())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: plain_safetensors.py RUN_DIR")
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.exit(f"plain_safetensors.py: no checkpoint to read: {error}")

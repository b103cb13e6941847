"""All that only a GPU can tell, in ten minutes: ``make gpu``.

    python -m benchmarks.gpu                # on a machine without a GPU it lists what it would run
    python -m benchmarks.gpu --trial        # the same on a CPU with tiny models: shows that it works

First the tests of ``tests/gpu``, then the benchmarks, of which each begins only while there is time:

- *steps*: a training step of the control, of K = 2, ContextFirst and shared keys and values, in turn, bf16, with rows
  of 128, 512 and 2,048 tokens; median, ratio within a round, the limit of the arithmetic, MFU;
- *inference*: the [CLS] classifier of an export beside transformers' BERT, bf16, in turn;
- *run*: `narrowbert train` on the built-in corpus: how long a step waits for its rows, and for a checkpoint.

Writes the rows to results/gpu.jsonl, with the name of the GPU, and prints them as tables.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import inference, model
from benchmarks.results import FOLDER, markdown, record
from pipeline.engine.deepspeed_engine import initialise_process_group
from pipeline.layout import parse_layout
from pipeline.model.arithmetic import training_flops
from pipeline.processes.world import World
from pipeline.training.gauges import peak_flops

ROOT = Path(__file__).parents[1]
CASES = (("12sf", "per_layer"), ("2sf:10sf", "per_layer"), ("2sf 10s:10f", "per_layer"), ("2sf:10sf", "shared"))
SHARE_OF_TESTS = 0.5
"""Of the time, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Of the models and rows."""

    device: torch.device
    name: str
    """Of the device."""
    hidden_size: int = 768
    heads: int = 12
    seq_lengths: tuple[int, ...] = (128, 512, 2048)
    micro_tokens: int = 32_768
    rounds: int = 20


def size_of(trial: bool) -> Size:
    """A GPU's, or a trial's on a CPU."""
    if trial:
        return Size(
            device=torch.device("cpu"), name="cpu, a trial", hidden_size=64, heads=4, seq_lengths=(16, 32),
            micro_tokens=64, rounds=2,
        )  # fmt: skip
    return Size(device=torch.device("cuda", 0), name=torch.cuda.get_device_name(0))


def steps(size: Size) -> list[dict[str, str]]:
    """Training steps of the layouts in turn."""
    rows = []
    peak = peak_flops(size.name, "bf16")
    for seq_length in size.seq_lengths:
        micro_rows = max(1, size.micro_tokens // seq_length)
        setting = model.Setting(
            hidden_size=size.hidden_size, heads=size.heads, precision="bf16", rows=2 * micro_rows,
            seq_length=seq_length, micro_rows=micro_rows,
        )  # fmt: skip
        configs = [model.configuration(setting, layout, narrow_kv) for layout, narrow_kv in CASES]
        batch = model.random_rows(setting, size.device)
        contestants = [model.Contestant(config, setting.shape, size.device, batch) for config in configs]
        for contestant in contestants:
            contestant.step()
        rounds = [[model.seconds(one.step, size.device) for one in contestants] for _ in range(size.rounds)]
        flops = [training_flops(parse_layout(c.model.layout), c.model, setting.shape) * setting.rows for c in configs]
        for column, (layout, narrow_kv) in enumerate(CASES):
            own = statistics.median(times[column] for times in rounds)
            ratio = statistics.median(times[0] / times[column] for times in rounds)
            rows.append(
                {
                    "tokens a row": f"{seq_length:,}",
                    "layout": layout,
                    "keys and values": narrow_kv,
                    "step": f"{1e3 * own:.1f} ms",
                    "tokens/s": f"{setting.rows * seq_length / own:,.0f}",
                    "ratio": f"{ratio:.2f}x of {flops[0] / flops[column]:.2f}x",
                    "MFU": f"{flops[column] / own / peak:.1%}" if peak else "",
                }
            )
        for contestant in contestants:
            contestant.engine.destroy()
        del contestants
    return rows


def classifiers(size: Size) -> list[dict[str, str]]:
    """Forward passes of classifiers in turn."""
    rows = []
    for seq_length in size.seq_lengths:
        if seq_length > 512:  # the positions of BERT
            continue
        shape = inference.Shape(hidden_size=size.hidden_size, heads=size.heads)
        batch = inference.make_batch([seq_length] * max(1, size.micro_tokens // seq_length))
        batch = {name: tensor.to(size.device) for name, tensor in batch.items()}
        models: list[Any] = [inference.build_control(shape, torch.bfloat16)]
        models += [inference.build(shape, layout, True, torch.bfloat16) for layout in ("2sf:10sf", "4sf:8sf")]
        models = [one.to(size.device) for one in models]
        calls: list[Callable[[], Any]] = [lambda one=one, batch=batch: one(**batch) for one in models]
        with torch.inference_mode():
            for call in calls:
                call()
            rounds = [[model.seconds(call, size.device) for call in calls] for _ in range(size.rounds)]
        for column, layout in enumerate(("transformers' BERT", "2sf:10sf", "4sf:8sf")):
            own = statistics.median(times[column] for times in rounds)
            ratio = statistics.median(times[0] / times[column] for times in rounds)
            rows.append(
                {
                    "tokens a row": f"{seq_length:,}",
                    "model": layout,
                    "rows/s": f"{len(batch['input_ids']) / own:,.0f}",
                    "ratio": f"{ratio:.2f}x",
                }
            )
    return rows


def run(size: Size, trial: bool) -> list[dict[str, str]]:
    """A training of the commands: waits for rows and for checkpoints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "DS_ACCELERATOR": size.device.type}
        prep = ["--config", str(ROOT / "configs/prep/quickstart.yaml"), "--output", str(folder / "shards")]
        for command in (["data_prep", "vocab", *prep], ["data_prep", "shards", *prep]):
            subprocess.run([sys.executable, "-m", *command], check=True, cwd=folder, env=environment)
        options = [
            "--config", str(ROOT / f"configs/pretrain/{'quickstart' if trial else 'narrowbert-base'}.yaml"),
            "--data.path", str(folder / "shards"), "--run_dir", str(folder / "run"), "--tracking.enabled", "false",
            "--training.train_steps", "6" if trial else "60", "--training.save_interval", "2" if trial else "20",
            "--training.log_interval", "1" if trial else "10", "--training.eval_interval", "100",
        ]  # fmt: skip
        if trial:
            options += ["--training.global_batch_size", "4", "--training.micro_batch_size", "2"]
            options += ["--training.eval_rows", "8"]
        subprocess.run(
            [sys.executable, "-m", "pipeline", "train", *options], check=True, cwd=folder, env=environment,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found: dict[str, list[float]] = {}
        for line in (folder / "run/metrics.jsonl").read_text().splitlines():
            for metric, value in json.loads(line)["metrics"].items():
                found.setdefault(metric, []).append(value)
    shown = ("train/tokens_per_second", "train/data_wait_seconds", "checkpoint/blocking_seconds", "checkpoint/seconds")
    return [
        {"metric": name, "median": f"{statistics.median(found[name]):,.4g}", "largest": f"{max(found[name]):,.4g}"}
        for name in shown
    ]


def tests(trial: bool, seconds: float) -> bool:
    """Run tests/gpu; whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/gpu"]
    environment = {**os.environ, "NARROWBERT_TEST_GPU": "cpu" if trial else "cuda"}
    if not trial:
        environment["DS_ACCELERATOR"] = "cuda"
    try:
        return subprocess.run(command, check=False, cwd=ROOT, env=environment, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"tests/gpu took more than {seconds:.0f} s: what was left of it was not run")
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="tiny models on the CPU, nothing is recorded")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which nothing new begins")
    parser.add_argument("--no_tests", action="store_true", help="the benchmarks alone")
    options = parser.parse_args()
    if not options.trial and not torch.cuda.is_available():
        print(f"no GPU that torch {torch.__version__} can use: nothing is run. With one, these are:", flush=True)
        subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/gpu"], check=True, cwd=ROOT)
        print("then the benchmarks:\n\n" + __doc__[__doc__.index("- *steps*") : __doc__.index("Writes the")].strip())
        return 0
    end = time.monotonic() + 60 * options.minutes
    passed = options.no_tests or tests(options.trial, 60 * SHARE_OF_TESTS * options.minutes)
    size = size_of(options.trial)
    initialise_process_group(World(rank=0, local_rank=0, size=1))
    parts = {
        "run": lambda: run(size, options.trial),
        "inference": lambda: classifiers(size),
        "steps": lambda: steps(size),
    }
    for name, measure in parts.items():
        if time.monotonic() > end:
            print(f"{name}: left out, {options.minutes:g} minutes are over")
            continue
        rows = measure()
        print(f"\n{name}, {size.name}:")
        if options.trial:
            print(*rows, sep="\n")
        else:
            record("gpu", name, rows, size.name)
            print(markdown("gpu", name))
    print(f"the rows are in {FOLDER / 'gpu.jsonl'}" if not options.trial else "a trial: nothing was recorded")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

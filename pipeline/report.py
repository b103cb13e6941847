"""Runs side by side: loss, throughput, speed-up."""

import statistics
from pathlib import Path

from data_prep.command_line import UserError
from pipeline.config import ModelConfig
from pipeline.run_directory import read_run_config, read_run_record
from pipeline.throughput import RowShape, predicted_speedup
from pipeline.tracking import read_metrics


def report(run_dirs: list[Path]) -> str:
    """A table of runs; the last one is the control that the others are compared with.

    Tokens a second are the median over the run's logs, so that a slow start does not count.

    Raises:
        UserError: a folder is no run, or has no evaluation yet.
    """
    rows = [_read_run(run_dir) for run_dir in run_dirs]
    header = ["run", "layout", "steps", "validation loss", "accuracy", "tokens/s", "speed-up", "limit"]
    control = rows[-1]
    table = [header]
    for row in rows:
        table.append(
            [
                row["name"],
                row["layout"],
                str(row["steps"]),
                f"{row['first_loss']:.3f} -> {row['last_loss']:.3f}",
                f"{row['accuracy']:.3f}",
                f"{row['rate']:,.0f}",
                f"{row['rate'] / control['rate']:.2f}x",
                f"{row['limit'] / control['limit']:.2f}x",
            ]
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, f"speed-up: against {control['name']}; limit: what the arithmetic allows"])


def _read_run(run_dir: Path) -> dict:
    config = read_run_config(run_dir)
    series = read_metrics(run_dir)
    if not series.get("validation/loss") or not series.get("train/tokens_per_second"):
        raise UserError(f"{run_dir} has no evaluation yet: let it train to its end")
    data = read_run_record(run_dir)["data"]
    shape = RowShape(**{key: data[key] for key in ("seq_length", "masked_per_row", "vocab_size")})
    losses = [value for _, value in series["validation/loss"]]
    return {
        "name": run_dir.name,
        "layout": config["model"]["layout"],
        "steps": series["validation/loss"][-1][0],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "accuracy": series["validation/masked_accuracy"][-1][1],
        "rate": statistics.median(value for _, value in series["train/tokens_per_second"]),
        "limit": predicted_speedup(ModelConfig(**config["model"]), shape),
    }

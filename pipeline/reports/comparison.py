"""Runs side by side: a text table, and one self-contained page with their curves (``page``)."""

import math
from pathlib import Path

from data_prep.contract.command_line import UserError
from data_prep.contract.files import write_atomically
from pipeline.reports.history import RunHistory, read_history


def report(run_dirs: list[Path]) -> str:
    """A table of runs; the last one is the control that the others are compared with.

    Raises:
        UserError: a folder is no run, or has no evaluation yet, and not because its shards hold no validation rows.
    """
    runs = [_with_evaluation(run_dir) for run_dir in run_dirs]
    table = [["run", "layout", "steps", "validation loss", "accuracy", "tokens/s", "speed-up", "limit"]]
    control = runs[-1]
    for run in runs:
        losses, accuracies = run.series("validation/loss"), run.series("validation/masked_accuracy")
        steps = losses[-1][0] if losses else run.points[-1].step
        table.append(
            [
                run.name,
                run.layout,
                f"{run.steps_before} + {steps}" if run.steps_before else str(steps),
                f"{losses[0][1]:.3f} -> {losses[-1][1]:.3f}" if losses else "-",
                f"{accuracies[-1][1]:.3f}" if accuracies else "-",
                f"{run.median_rate():,.0f}",
                f"{(run.median_rate() or 0) / (control.median_rate() or math.nan):.2f}x",
                f"{run.limit / control.limit:.2f}x",
            ]
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, f"speed-up: against {control.name}; limit: what the arithmetic allows"])


def _with_evaluation(run_dir: Path) -> RunHistory:
    run = read_history(run_dir)
    evaluated = run.finished or run.series("validation/loss")  # without validation rows a run ends without
    if not evaluated or run.median_rate() is None:
        raise UserError(f"{run_dir} has no evaluation yet: let it train to its end")
    return run


def write_report(run_dirs: list[Path], output: Path) -> None:
    """Write the page that compares runs; the last one is the control.

    Raises:
        UserError: a folder is no run, a file of it is damaged, or ``output`` cannot be written.
    """
    from pipeline.reports.page import render_page

    page = render_page([read_history(run_dir) for run_dir in run_dirs])
    try:
        write_atomically(output, page)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error

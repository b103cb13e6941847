"""Results of all seeds: results.json, results.md, MLflow."""

import dataclasses
import json
import math
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import write_atomically
from data_prep.contract.redaction import redact, redact_urls
from data_prep.contract.shard_format import file_sha256
from pipeline.finetune.config import FinetuneConfig
from pipeline.runs.directory import flatten
from pipeline.tracking.description import default_store, named_store
from pipeline.tracking.embedded_store import make_store
from pipeline.tracking.mlflow_client import mlflow_for_users

RESULTS = ("results.md", "results.json")
LOGGED = "tracking.json"
"""The results that MLflow has, by their hash, and where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one seed came to."""

    seed: int
    """Of the training."""
    metrics: dict[str, float]
    """By split and name: ``validation/accuracy``."""
    losses: list[list[float]]
    """[step, mean training loss since the last]."""
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    """sha256 of what it was made of, by option: ``data.train``, ``data.validation``, ``data.test``, ``model``."""


def as_text(result: Mapping[str, Any]) -> str:
    """JSON, with null for what is no number, such as the correlation of predictions that are all the same."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: strict(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [strict(inner) for inner in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(result), indent=2, allow_nan=False) + "\n"


def write_durably(path: Path, text: str) -> None:
    """Write a small file whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, text, durable=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; what is trained is kept, the same command goes on with it"
        ) from error


def read_result(path: Path) -> Result:
    """What ``as_text`` wrote of a seed.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metrics = {name: math.nan if value is None else float(value) for name, value in content["metrics"].items()}
        inputs = dict(content.get("inputs", {}))
        return Result(seed=content["seed"], metrics=metrics, losses=content["losses"], inputs=inputs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or cannot be read ({error!r}): remove it, to train this seed again"
        ) from error


def as_figure(value: float) -> str:
    """A metric for people."""
    return f"{value:.4f}" if math.isfinite(value) else "undefined"


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 of a single value, NaN where one is no number."""
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def write_results(
    output: Path,
    config: FinetuneConfig,
    results: list[Result],
    primary_metric: str,
    examples: Mapping[str, int],
    cut: Mapping[str, int],
) -> str:
    """Write both files; returns the table."""
    names = sorted(results[0].metrics, key=lambda name: (not name.endswith(f"/{primary_metric}"), name))
    summary = {name: mean_and_deviation([result.metrics[name] for result in results]) for name in names}
    record = {
        "configuration": redact(config_as_dict(config)),
        "primary_metric": primary_metric,
        "examples": dict(examples),
        "cut_texts": dict(cut),
        "mean": {name: mean for name, (mean, _) in summary.items()},
        "deviation": {name: deviation for name, (_, deviation) in summary.items()},
        "seeds": [dataclasses.asdict(result) for result in results],
    }
    write_durably(output / "results.json", as_text(record))
    rows = [["seed", *names]]
    rows += [[str(result.seed), *(as_figure(result.metrics[name]) for name in names)] for result in results]
    rows.append(
        ["mean ± deviation", *(f"{as_figure(mean)} ± {as_figure(deviation)}" for mean, deviation in summary.values())]
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    table = "\n".join(lines)
    heading = f"# {output.name}: {config.task} by {Path(config.model).name}\n\n"
    write_durably(output / "results.md", f"{heading}{table}\n")
    return table


def log_to_mlflow(output: Path, config: FinetuneConfig, results: list[Result]) -> None:
    """One MLflow run: the configuration, each seed's figures and losses, mean and deviation, the two files.

    The same results are logged once to a store, by ``tracking.json``. A server that cannot be reached costs nothing but
    a line: the results are in ``output``.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        with mlflow_for_users():
            _log(output, config, results)
    except UserError as error:
        sys.stderr.write(f"{error} (the results are in {output})\n")


def _log(output: Path, config: FinetuneConfig, results: list[Result]) -> None:
    import mlflow

    store = named_store() or default_store()
    logged = {
        "store": redact_urls(store),
        "experiment_name": config.tracking.experiment_name,
        "results": file_sha256(output / "results.json"),
    }
    if logged.items() <= _read_logged(output).items():
        return
    make_store(store)
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment(config.tracking.experiment_name)
    with mlflow.start_run(run_name=config.tracking.run_name or output.name) as run:
        mlflow.log_params(flatten(redact(config_as_dict(config))))
        for result in results:
            mlflow.log_metrics({f"seed-{result.seed}/{name}": value for name, value in _finite(result.metrics).items()})
            for step, loss in result.losses:
                if loss is not None:
                    mlflow.log_metric(f"seed-{result.seed}/train/loss", loss, step=int(step))
        for name in results[0].metrics:
            mean, deviation = mean_and_deviation([result.metrics[name] for result in results])
            mlflow.log_metrics(_finite({f"{name}/mean": mean, f"{name}/deviation": deviation}))
        for name in RESULTS:
            mlflow.log_artifact(str(output / name))
    write_durably(output / LOGGED, as_text({**logged, "run_id": run.info.run_id}))


def _read_logged(output: Path) -> dict[str, Any]:
    """What was logged last; nothing where that is not known, and a run too many is better than none."""
    try:
        return dict(json.loads((output / LOGGED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """MLflow's stores do not all take NaN, which is the correlation of a constant."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}

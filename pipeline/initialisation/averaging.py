"""The mean of several checkpoints' weights, as a folder that is read like a run's.

The weights along the end of a training, or at the ends of several, often lie around a better point: Izmailov et al.,
"Averaging Weights Leads to Wider Optima and Better Generalization" (UAI 2018); Wortsman et al., "Model soups" (2022).
"""

import dataclasses
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from data_prep.contract.command_line import UserError
from data_prep.contract.files import flush_to_disk, process_name, write_atomically
from pipeline.checkpoints.commit import commit
from pipeline.checkpoints.format import CheckpointError, SizeAndHash, TrainerState
from pipeline.checkpoints.reading import (
    checkpoint_folders,
    describe_checkpoint,
    read_tensors,
    read_trainer_state,
    verify_checkpoint,
)
from pipeline.checkpoints.tensor_file import TensorFile
from pipeline.config import ModelConfig
from pipeline.export.folder import check_output
from pipeline.initialisation.tokenizer import different_tokenizer
from pipeline.model.parameters import COMPUTING_OPTIONS, model_parameters
from pipeline.runs.ancestry import split_source
from pipeline.runs.directory import read_run_config, read_run_record


def average_runs(sources: Sequence[str], output: Path, last: int | None) -> list[str]:
    """Average weights in fp32, and write them with what belongs to a run: one checkpoint, configuration, tokenizer.

    The folder appears whole or not at all. Its checkpoint has the step, position and configuration of the last one
    that went in, and no moments.

    Args:
        sources: runs, as RUN or RUN@STEP.
        output: the folder to make.
        last: how many of each run's newest intact checkpoints, up to STEP, go in; None: one of each of several runs.

    Returns:
        Lines that say what went in.

    Raises:
        UserError: there are not so many intact checkpoints, they are of different models, or ``output`` exists or
            cannot be written.
    """
    if last is None and len(sources) < 2:
        raise UserError("one checkpoint has no average: give --last N, or several runs")
    if last is not None and (last < 1 or last * len(sources) < 2):
        raise UserError(f"--last is {last}: give a number of at least {2 if len(sources) == 1 else 1}")
    check_output(output)
    folders = [folder for source in sources for folder in _newest_intact(source, last or 1)]
    states = [read_trainer_state(folder) for folder in folders]
    for folder, state in zip(folders[1:], states[1:], strict=True):
        _check_same(folders[0], states[0], folder, state)
    output = output.resolve()
    partial = output.with_name(f".{output.name}.{process_name()}.partial")
    try:
        _write(partial, folders, states[-1])
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
        flush_to_disk(output.parent)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [f"step {state.step:,} of {_run_of(folder)}" for folder, state in zip(folders, states, strict=True)]


def _run_of(folder: Path) -> Path:
    return folder.parent.parent


def _newest_intact(source: str, count: int) -> list[Path]:
    """The newest intact checkpoints of a run, the oldest of them first."""
    run_dir, step = split_source(source)
    if not run_dir.is_dir():
        raise UserError(f"there is no run {run_dir}: give RUN or RUN@STEP")
    read_run_record(run_dir)
    folders = checkpoint_folders(run_dir / "checkpoints")
    if step is not None:
        folders = [folder for folder in folders if folder.name <= f"step-{step:08d}"]
        if not folders or folders[0].name != f"step-{step:08d}":
            raise UserError(f"{run_dir} has no checkpoint of step {step}: narrowbert checkpoints lists those it has")
    found: list[Path] = []
    problems: list[str] = []
    for folder in folders:
        if len(found) == count:
            break
        try:
            verify_checkpoint(folder)
            found.append(folder)
        except CheckpointError as error:
            problems.append(str(error))
    if len(found) < count:
        damaged = f" ({'; '.join(problems)})" if problems else ""
        raise UserError(f"{source} has {len(found)} intact checkpoints{damaged}, and {count} are to be averaged")
    return found[::-1]


def _check_same(first: Path, one: TrainerState, folder: Path, other: TrainerState) -> None:
    """Refuse checkpoints whose weights mean different things."""
    there, here = (ModelConfig(**state.config["model"]) for state in (one, other))
    table = model_parameters(there, one.vocab_size)
    different = []
    for name in (field.name for field in dataclasses.fields(ModelConfig)):
        before, now = getattr(there, name), getattr(here, name)
        changes = name in COMPUTING_OPTIONS or (
            model_parameters(dataclasses.replace(there, **{name: now}), one.vocab_size) != table
        )
        if before != now and changes:
            different.append(f"model.{name} {before} and {now}")
    if one.vocab_size != other.vocab_size:
        different.append(f"vocabularies of {one.vocab_size} and {other.vocab_size}")
    if (_run_of(first) / "tokenizer.json").is_file():
        different += different_tokenizer(_run_of(folder), _run_of(first) / "tokenizer.json").values()
    if different:
        raise UserError(f"{first} and {folder} have no average: {'; '.join(different)}")


def _write(partial: Path, folders: Sequence[Path], state: TrainerState) -> None:
    """Write the whole folder under a temporary name."""
    run_dir = _run_of(folders[-1])
    record = {**read_run_record(run_dir)}
    lineage_id = uuid.uuid4().hex
    for key in ("computed_otherwise", "averaged_from"):
        record.pop(key, None)
    averaged = [describe_checkpoint(folder) for folder in folders]
    record |= {"lineage_id": lineage_id, "attempt": 1, "arithmetic": [], "averaged_from": averaged}
    read_run_config(run_dir)  # refuses a damaged one
    temporary = partial / "checkpoints" / ".tmp-average"
    temporary.mkdir(parents=True)
    files = _write_mean(temporary, folders)
    mean = dataclasses.replace(state, lineage_id=lineage_id, attempt=1, optimizer_steps=0, skipped_steps=0)
    commit(temporary, partial / "checkpoints" / folders[-1].name, mean, files, may_commit=lambda: True)
    for name in ("config.yaml", "tokenizer.json"):
        write_atomically(partial / name, (run_dir / name).read_bytes(), durable=True)
    write_atomically(partial / "run.json", json.dumps(record, indent=1) + "\n", durable=True)


def _write_mean(temporary: Path, folders: Sequence[Path]) -> dict[str, SizeAndHash]:
    """Write the mean of each weight, added up in fp64, one weight at a time."""
    weights = [read_tensors(folder, "weights") for folder in folders]  # mapped: read as they are used
    name = "weights-00000-of-00001.safetensors"
    file = TensorFile(temporary / name, {key: tuple(tensor.shape) for key, tensor in weights[0].items()})
    for key in weights[0]:
        total = torch.zeros_like(weights[0][key], dtype=torch.float64)
        for tensors in weights:
            total += tensors[key]
        file.write((total / len(weights)).float())
    return {name: file.close()}

"""A checkpoint of another run of this program as the start of a run: its next phase, or a branch of it.

The checkpoint is chosen once and recorded in ``run.json``, with all that a resume needs to know of it: no later start
asks for the parent once something is saved.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.choosing import choose_intact
from pipeline.checkpoints.format import KINDS, CheckpointError, TrainerState
from pipeline.checkpoints.reading import (
    checkpoint_folders,
    describe_checkpoint,
    load_weights,
    manifest_hash,
    read_trainer_state,
    verify_checkpoint,
)
from pipeline.checkpoints.restore import load_optimizer
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.order import ORDER_VERSION
from pipeline.engine.protocol import Engine
from pipeline.initialisation.parent_fit import differences, fit_to, model_of
from pipeline.initialisation.tokenizer import different_tokenizer
from pipeline.layout import parse_layout
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.processes.agreement import from_rank_0
from pipeline.processes.world import World
from pipeline.runs.ancestry import Parent, checkpoint_of, split_source
from pipeline.runs.directory import RunRecord, has_checkpoint, read_run_record, stored_record

log = logging.getLogger("narrowbert")

_POSITIONS = "embeddings.position_embeddings.weight"


def check_from_run(config: RunConfig, shards: Mixture) -> None:
    """Refuse an ``init.from_run`` that cannot be started from; no tensor is read.

    Raises:
        UserError: there is no such run or checkpoint, or it does not fit the model or the shards.
    """
    problems = []
    for folder in _candidates(config):
        try:
            verify_checkpoint(folder, read=False)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            _check_fit(config, shards, folder)
            return
    raise _none_intact(config, problems)


def choose_parent(config: RunConfig, shards: Mixture, world: World) -> Parent | None:
    """The checkpoint that a run begins at, verified; every rank calls this.

    Returns:
        None where the run has begun at none, or has saved something and goes by its records.

    Raises:
        UserError: on every rank: no checkpoint is intact, or the newest that is does not fit.
    """
    if config.init.from_run is None:
        return None
    folders = from_rank_0(lambda: None if has_checkpoint(config) else _candidates(config))
    if folders is None:
        return None
    folder, problems = choose_intact(folders, world)
    if folder is None:
        raise _none_intact(config, problems)
    for problem in problems:
        log.warning("checkpoint passed over: %s", problem)
    _check_fit(config, shards, folder)
    return _describe(config, shards, folder)


def load_parent_weights(model: NarrowBertForPretraining, config: RunConfig, shards: Mixture, parent: Parent) -> None:
    """Put the parent's weights into the bare model, and log what is taken and what differs; every rank calls this."""
    folder = checkpoint_of(parent)
    state = read_trainer_state(folder)
    what = "weights and moments" if parent["moments"] else "weights"
    log.info("starting from %s of step %d of %s", what, parent["step"], parent["path"])
    _, others = differences(state, config, shards)
    for text in others:
        log.info("not as there: %s", text)
    log.info("rows: %s", _row_order_text(config, shards, state, parent))
    load_weights(model, folder, fit_to(config, shards, state))


def load_parent_optimizer(engine: Engine, config: RunConfig, shards: Mixture, parent: Parent) -> None:
    """Put the parent's fp32 weights, and where asked to its moments, into an engine whose run begins at step 0.

    fp16 goes on with the parent's loss scale, which its gradients have found.
    """
    folder = checkpoint_of(parent)
    state = read_trainer_state(folder)
    begin = dataclasses.replace(
        state,
        step=0,
        optimizer_steps=state.optimizer_steps if parent["moments"] else 0,
        loss_scaler=state.loss_scaler if engine.fp16_enabled() else None,
    )
    kinds = KINDS if parent["moments"] else ("weights",)
    load_optimizer(engine, folder, begin, kinds=kinds, fit=fit_to(config, shards, state))


def _candidates(config: RunConfig) -> list[Path]:
    """Checkpoints that the run may begin at, the newest first.

    A start that was killed before its first checkpoint has written losses: the next one begins at the same place.

    Raises:
        UserError: there is no such run, it has saved nothing, or what the first start began at is gone.
    """
    assert config.init.from_run is not None
    source, step = split_source(config.init.from_run)
    run_dir = Path(config.run_dir)
    begun: Parent | None = stored_record(run_dir).get("parent") if (run_dir / "config.yaml").exists() else None
    if begun is not None:
        folder = checkpoint_of({**begun, "path": str(source)})
        if manifest_hash(folder) != begun["sha256"]:
            raise UserError(
                f"run_dir {run_dir} has begun at step {begun['step']} of {source}, which is gone or was changed, and "
                "has saved nothing yet: restore that checkpoint, or give another --run_dir"
            )
        return [folder]
    if not source.is_dir():
        raise UserError(f"init.from_run {config.init.from_run}: there is no run {source}; give RUN or RUN@STEP")
    read_run_record(source)
    folders = checkpoint_folders(source / "checkpoints")
    if not folders:
        raise UserError(f"init.from_run {config.init.from_run}: {source} has no checkpoint yet")
    if step is not None:
        found = [folder for folder in folders if folder.name == f"step-{step:08d}"]
        if not found:
            there = ", ".join(folder.name.removeprefix("step-").lstrip("0") for folder in folders[:5])
            raise UserError(f"init.from_run: {source} has no checkpoint of step {step}: the newest are {there}")
        return found
    return folders


def _none_intact(config: RunConfig, problems: Sequence[str]) -> UserError:
    return UserError(f"init.from_run {config.init.from_run}: no checkpoint is intact: {'; '.join(problems)}")


def _check_fit(config: RunConfig, shards: Mixture, folder: Path) -> None:
    """Refuse a checkpoint of another model or tokenizer, with all that differs in one line."""
    state = read_trainer_state(folder)
    different, _ = differences(state, config, shards)
    if state.vocab_size != shards.vocab_size:
        different.append(f"a vocabulary of {state.vocab_size} there, {shards.vocab_size} in the shards")
    different += different_tokenizer(folder.parent.parent, shards.tokenizer_path).values()
    if different:
        raise UserError(
            f"{folder} does not fit the model ({'; '.join(different)}): give the model's options and the tokenizer "
            "that it was trained with"
        )
    if config.init.allow and parse_layout(model_of(state).layout) == parse_layout(config.model.layout):
        raise UserError(f"init.allow names layout, but the layout of {folder} is the same: leave it out")
    if config.init.moments and not any(folder.glob("exp_avg-*")):
        raise UserError(f"{folder} holds weights alone, without moments: leave out init.moments")
    # The other way round Muon takes Adam's first moment for its momentum.
    was_muon = state.config.get("optimizer", {}).get("type") == "muon"
    if config.init.moments and was_muon and config.optimizer.type != "muon":
        raise UserError(
            f"{folder} was trained with Muon and has no second moments of the hidden matrices: leave out init.moments, "
            "or take optimizer.type muon"
        )


def _describe(config: RunConfig, shards: Mixture, folder: Path) -> Parent:
    """What the run records of the checkpoint that it begins at."""
    record, state = read_run_record(folder.parent.parent), read_trainer_state(folder)
    before = state.parent or {"steps": 0, "rows": 0, "tokens": 0}
    goes_on = not _other_order(config, shards, state, record)
    return {
        **describe_checkpoint(folder),
        "moments": config.init.moments,
        "first_row": state.rows_consumed if goes_on else 0,
        "steps": before["steps"] + state.step,
        "rows": before["rows"] + state.rows_trained,
        "tokens": before["tokens"] + state.rows_trained * record["data"]["seq_length"],
    }


def _other_order(config: RunConfig, shards: Mixture, state: TrainerState, record: RunRecord) -> str:
    """What makes the order of the rows another one than the parent's; empty where it is the same.

    Only then is the parent's position one of this run's: rows behind it are those that were not seen.
    """
    there, batch = state.config, config.training.global_batch_size
    if state.data_root_hash != shards.root_hash:
        return "other shards than there"
    if there["data"]["seed"] != config.data.seed:
        return "another data.seed than there"
    if there["training"]["global_batch_size"] != batch:
        return "another training.global_batch_size than there"
    return "" if record.get("order_version", 1) == ORDER_VERSION else "the parent has an earlier version's order"


def _row_order_text(config: RunConfig, shards: Mixture, state: TrainerState, parent: Parent) -> str:
    other = _other_order(config, shards, state, read_run_record(Path(parent["path"])))
    if other:
        return f"{other}: the order begins at row 0"
    return f"the order goes on at row {parent['first_row']:,}, where the parent had come to"

"""The training loop."""

import contextlib
import logging
import sys
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from data_prep.contract.command_line import UserError
from data_prep.contract.files import raise_descriptor_limit, write_atomically
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.engine.deepspeed_engine import destroy_engine, initialise_process_group
from pipeline.processes.agreement import Agreement
from pipeline.processes.failures import full_disk_as_user_error, no_memory_as_user_error
from pipeline.processes.malloc import keep_freed_memory
from pipeline.processes.ranks import Ranks
from pipeline.processes.signals import REQUEUE_EXIT_CODE, StoppedError
from pipeline.processes.watchdog import Watchdog
from pipeline.processes.world import World
from pipeline.training.objective import MASKED_LANGUAGE_MODELLING, Objective
from pipeline.training.profiling import Profiler
from pipeline.training.start import Run, open_run, register

log = logging.getLogger("narrowbert")


def train_to_end(run: Run, profiler: Profiler) -> int:
    """Do the remaining steps, with logs, evaluations and checkpoints on their intervals. Returns the exit code."""
    training = run.config.training
    stop = False
    with run.meter.paused():
        if run.is_due(training.eval_interval):
            stop = run.validation.catch_up(run.step)
    while run.step < run.train_steps and not stop:
        batches, agreed = run.rows.read(run.step)
        if agreed.stop:
            break
        if agreed.decay and run.budget.fixed_end is None:  # what was asked ahead comes once more
            run.begin_decay()
        run.meter.add(run.trainer.step(batches, agreed.weight, run.step))
        run.step += 1
        if run.trainer.spikes.found:
            log.warning("step %d  skipped as a spike: %s", run.step, run.trainer.spikes.found)
            run.records.event("spike", run.step, run.trainer.spikes.found)
        profiler.step(run.step)
        run.records.progress.advance()
        to_save = run.is_due(training.save_interval)
        # Before a checkpoint the losses go to disk: a resume does not compute those steps again.
        if to_save or run.is_due(training.log_interval):
            _log(run)
        with run.meter.paused():
            if run.is_due(training.eval_interval):
                stop = run.validation.run(run.step)
            if to_save:
                run.saver.begin(run.step, run.meter.skipped_steps, run.trainer.spikes.history)
    run.rows.end()
    run.records.progress.close()
    return _end(run)


def train(
    config: RunConfig,
    world: World,
    shards: Mixture,
    objective: Objective = MASKED_LANGUAGE_MODELLING,
    profile_steps: int = 0,
) -> int:
    """Train or resume the run in ``config.run_dir``; every process calls this.

    Args:
        config: checked by ``pipeline.runs.directory.prepare_run``, which also opens ``shards``.
        world: which of the processes this is.
        shards: the opened shard folders.
        objective: the loss to train with. Validation reports the masked-language-model loss whatever it is.
        profile_steps: steps of rank 0 to record by torch's profiler; 0: none.

    Returns:
        0 when the last step is done and saved, ``REQUEUE_EXIT_CODE`` when a signal has ended it before.

    Raises:
        UserError: the run cannot continue: no intact checkpoint, a full disk, too little memory, divergence. Among
            several processes the caller must end this one then, since its watch and its group stay until the others
            have noticed.
        LostConnectionError: the ranks did not find each other, or lost each other; new processes resume the run.
    """
    raise_descriptor_limit()  # a mapped shard takes one
    keep_freed_memory()
    training = config.training
    try:
        device = initialise_process_group(world, training.tensor_model_parallel_size, training.hang_timeout)
    except StoppedError as error:  # there is nothing to save, and no log yet
        sys.stderr.write(f"narrowbert: {error}\n")
        return REQUEUE_EXIT_CODE
    watchdog = None
    try:
        with full_disk_as_user_error(), contextlib.ExitStack() as at_end:
            agreement = Agreement()
            at_end.callback(agreement.close)
            attempt = register(config, world, shards)
            # After a good end the watch is over before the run is closed: rank 0 may wait for MLflow there.
            with (
                Watchdog(Path(config.run_dir), world, attempt, training.hang_timeout) as watchdog,
                no_memory_as_user_error(config, world, watchdog, device),
            ):
                run = open_run(config, shards, objective, Ranks(world, agreement, watchdog), attempt, device)
                at_end.push(lambda _kind, error, _traceback, run=run: run.close(error))
                # Log lines appear above the progress bar, not in it.
                with logging_redirect_tqdm([log]), Profiler(run, profile_steps, device) as profiler:
                    code = train_to_end(run, profiler)
    except UserError:
        if world.size == 1:  # nobody waits for this process, so that its caller may continue
            if watchdog is not None:
                watchdog.stop()
            torch.distributed.destroy_process_group()
        raise
    destroy_engine(run.engine)  # ends in a barrier: no rank leaves while another still writes
    return code


def _log(run: Run) -> None:
    """Record the steps since the last log; end a run that has diverged."""
    run.ranks.reached("adding up losses", run.step)
    points = run.meter.flush(run.step, run.engine)
    run.saver.report()
    run.records.log(run.step, points)
    skipped = run.meter.longest_skipped
    if skipped >= run.config.training.max_skipped_steps:
        why = " or they are spikes" if run.trainer.spikes.is_on else ""
        what = f"{skipped} steps in a row up to step {run.step} were skipped, their gradients are not finite{why}"
        run.records.event("diverged", run.step, what)
        raise UserError(
            f"{what}: continue from the last checkpoint with a larger training.max_skipped_steps, or start again "
            "with a smaller optimizer.lr"
        )


def _end(run: Run) -> int:
    """Save what is not saved yet, whatever ended the steps. Returns the exit code."""
    run.saver.wait(run.step)
    if run.step > run.saver.saved_step:  # a stop between two saves, or the last one failed
        if run.meter.has_steps:
            _log(run)
        run.saver.begin(run.step, run.meter.skipped_steps, run.trainer.spikes.history)
        problem = run.saver.wait(run.step)
        if problem:
            raise UserError(f"step {run.step} could not be saved ({problem}): fix that, then run the same again")
    run_dir = run.records.run_dir
    if run.step < run.train_steps:
        log.info("asked to stop: %d of %d steps are done and saved", run.step, run.train_steps)
        run.records.event("stopped by a signal", run.step, f"exit code {REQUEUE_EXIT_CODE}")
        return REQUEUE_EXIT_CODE
    if run.ranks.is_main:
        write_atomically(run_dir / "DONE", f"{run.step} steps\n", durable=True)
        log.info("done: %d steps; the last checkpoint is %s", run.step, run_dir / "checkpoints/latest")
    return 0

"""The training loop."""

import contextlib
import errno
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import yaml
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_prep.contract.command_line import UserError, config_as_dict, report_user_error
from data_prep.contract.files import write_atomically
from pipeline.checkpoints.format import TrainerState, remove_unfinished
from pipeline.checkpoints.reading import load_weights, newest_checkpoint, read_trainer_state
from pipeline.checkpoints.restore import load_optimizer, optimizer_steps
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.data.batches import Batch, TrainingData, validation_batches
from pipeline.data.mixture import Mixture
from pipeline.data.prefetch import Prefetcher
from pipeline.engine.bf16_products import has_bf16_products
from pipeline.engine.deepspeed_engine import (
    build_engine,
    destroy_engine,
    initialise_process_group,
    loss_scaler_state,
    update_weights,
)
from pipeline.engine.optimizer import learning_rate
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.dropout_seeds import seed_dropout
from pipeline.parallel.groups import data_parallel_group
from pipeline.processes.agreement import Agreement
from pipeline.processes.launch import World
from pipeline.processes.signals import REQUEUE_EXIT_CODE
from pipeline.processes.stragglers import OwnTime, Stragglers
from pipeline.processes.watchdog import Watchdog
from pipeline.runs.attempts import Attempt, is_newest_attempt, register_attempt
from pipeline.runs.records import Spool, append_event
from pipeline.runs.redaction import redact
from pipeline.tracking.description import describe_run
from pipeline.tracking.shipper import Shipper
from pipeline.training.gauges import Gauges
from pipeline.training.meter import LOSS, Meter, StepSums
from pipeline.training.objective import MASKED_LANGUAGE_MODELLING, Objective
from pipeline.training.validation import evaluate

T = TypeVar("T")

log = logging.getLogger("narrowbert")


def train(config: RunConfig, world: World, shards: Mixture, objective: Objective = MASKED_LANGUAGE_MODELLING) -> int:
    """Train or resume the run in ``config.run_dir``; every process calls this.

    Args:
        config: checked by ``pipeline.runs.directory.prepare_run``, which also opens ``shards``.
        world: which of the processes this is.
        shards: the opened shard folders.
        objective: the loss to train with. Validation reports the masked-language-model loss whatever it is.

    Returns:
        0 when the last step is done and saved, ``REQUEUE_EXIT_CODE`` when a signal has ended it before.
    """
    device = initialise_process_group(world, config.training.tensor_model_parallel_size, config.training.hang_timeout)
    try:
        with full_disk_as_user_error():
            run = Run(config, world, shards, device, objective)
            try:
                with logging_redirect_tqdm([log]):  # log lines appear above the progress bar, not in it
                    code = run.train_to_end()
                run.watchdog.stop()  # rank 0 may wait for MLflow below
            finally:
                run.close()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        # The orderly end below needs every rank. Without it the interpreter's own shutdown aborts now
        # and then ("terminate called without an active exception"), which would hide the exit code.
        code = report_user_error("narrowbert", error)
        sys.stdout.flush()
        os._exit(code)
    destroy_engine(run.engine)  # ends in a barrier: no rank leaves while another still writes
    return code


@contextlib.contextmanager
def full_disk_as_user_error() -> Iterator[None]:
    """A disk that takes no more is one line, wherever it is noticed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(
            f"{error.filename or 'the run directory'} cannot be written ({error.strerror}): make room, then run the "
            "same command again to go on from the last checkpoint"
        ) from error


class Run:
    """One start of a run: the engine, the data and rank 0's records."""

    def __init__(
        self, config: RunConfig, world: World, shards: Mixture, device: torch.device, objective: Objective
    ) -> None:
        self.config, self.world, self.shards, self.device = config, world, shards, device
        self.run_dir = Path(config.run_dir)
        self.objective = objective
        self.is_main = world.rank == 0
        self.agreement = Agreement()
        self.attempt = self._register_attempt()
        self.watchdog = Watchdog(self.run_dir, world, self.attempt.number, config.training.hang_timeout)
        self.watchdog.start()
        self.spool: Spool | None = None
        self._first_evaluation = True
        self.shipper: Shipper | None = None
        _set_up_logging(self.run_dir, world)
        if self.is_main and config.training.precision == "bf16" and not has_bf16_products(device):
            log.warning("this processor has no bf16 products: they are computed in fp32, at no more than its speed")
        # The ranks of a tensor-parallel group read the same rows.
        self.data_rank = dist.get_rank(data_parallel_group())
        self.data_parallel_size = dist.get_world_size(data_parallel_group())
        data = TrainingData(
            shards,
            seed=config.data.seed,
            global_batch_size=config.training.global_batch_size,
            micro_batch_size=config.training.micro_batch_size,
            data_rank=self.data_rank,
            data_parallel_size=self.data_parallel_size,
        )
        self.data = Prefetcher(
            data, device, num_workers=config.data.num_workers, prefetch_factor=config.data.prefetch_factor
        )
        self.engine, self.step, self.skipped_steps = self._build_or_resume()
        self.saved_step = self.step
        self.writer = CheckpointWriter(
            self.engine,
            self.run_dir / "checkpoints",
            keep_last=config.training.keep_last,
            keep_every=config.training.keep_every,
            may_commit=lambda: is_newest_attempt(self.run_dir, self.attempt.number),
            on_progress=self.watchdog.alive,
        )
        self.gauges = Gauges(config, shards, world.size, device)
        self.own_time = OwnTime(device)
        self.stragglers = Stragglers()
        self.hosts = self.agreement.gather(socket.gethostname())
        if self.is_main:
            self._open_records(list(dict.fromkeys(self.hosts)))

    # ------------------------------------------------------------------------------------ start

    def _register_attempt(self) -> Attempt:
        answer: list[Any] = [None]
        if self.is_main:
            answer = [register_attempt(self.run_dir, self.config, self.shards, self.world.size)]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def _build_or_resume(self) -> tuple[Any, int, int]:
        """The engine, the steps done, and how many of them were skipped."""
        torch.manual_seed(self.config.training.seed)  # the same initial weights on every rank
        vocab_size = self.shards.vocab_size
        padded_size = padded_vocab_size(vocab_size, self.config.training.tensor_model_parallel_size)
        model = NarrowBertForPretraining(self.config.model, vocab_size, padded_size)
        chosen: list[Any] = [None, []]
        if self.is_main:
            remove_unfinished(self.run_dir / "checkpoints")
            chosen = list(newest_checkpoint(self.run_dir / "checkpoints"))
        dist.broadcast_object_list(chosen, src=0)
        folder, problems = chosen
        for problem in problems:
            log.warning("checkpoint passed over: %s", problem)
            if self.is_main:
                append_event(self.run_dir, "checkpoint passed over", 0, problem)
        if folder is None:
            if problems:
                raise UserError(
                    f"no checkpoint of {self.run_dir} is intact: restore one, or start anew in another --run_dir"
                )
            if self.config.init.from_huggingface is not None:
                from pipeline.initialisation.load import (
                    load_init,  # and with it transformers, which no other start needs
                )

                for line in load_init(model, self.config, self.shards):
                    log.info(line)
            return build_engine(self.config, model, self.device), 0, 0
        state = read_trainer_state(folder)
        load_weights(model, folder)
        engine = build_engine(self.config, model, self.device)
        load_optimizer(engine, folder, state)
        log.info("resuming from %s (step %d of %d)", folder, state.step, self.config.training.train_steps)
        return engine, state.step, state.skipped_steps

    def _check_newest(self) -> None:
        """End a start that a newer one of the run has taken over: nothing of its own may be written any more."""
        if not is_newest_attempt(self.run_dir, self.attempt.number):
            raise UserError(
                f"a newer start of this run has taken over: start {self.attempt.number} of {self.run_dir} ends"
            )

    def _open_records(self, hosts: list[str]) -> None:
        self._check_newest()  # loading took its time
        write_atomically(
            self.run_dir / "config.yaml", yaml.safe_dump(redact(config_as_dict(self.config)), sort_keys=False)
        )
        # The run keeps what an export needs: its shards may be gone by then.
        shutil.copyfile(self.shards.tokenizer_path, self.run_dir / "tokenizer.json")
        self.spool = Spool(
            self.run_dir, computed_otherwise=self.attempt.computed_otherwise, check_newest=self._check_newest
        )
        append_event(
            self.run_dir, "start", self.step, f"start {self.attempt.number}, {self.world.size} processes",
            attempt=self.attempt.number, hosts=hosts, job_id=os.environ.get("SLURM_JOB_ID"),
        )  # fmt: skip
        if self.config.tracking.enabled:
            describe_run(
                self.run_dir, self.config, self.shards, self.attempt,
                world_size=self.world.size, device=str(self.device),
            )  # fmt: skip
            self.shipper = Shipper(self.run_dir)

    # ------------------------------------------------------------------------------------- loop

    def train_to_end(self) -> int:
        """Run the remaining steps, with logs, evaluations and checkpoints on their intervals. Returns the exit code."""
        training = self.config.training
        meter = Meter(self.config, self.shards, self.skipped_steps)
        progress = tqdm(
            total=training.train_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self.is_main and _terminal_has_width()),
        )
        with meter.paused():
            stop = self._evaluate_if_due()
        while self.step < training.train_steps and not stop:
            batches, stop = self._read_rows()
            if stop:
                break
            meter.add(self.train_step(batches))
            self.step += 1
            progress.update()
            to_save = self._is_due(training.save_interval)
            # Before a checkpoint the losses go to disk: a resume does not compute those steps again.
            if to_save or self._is_due(training.log_interval):
                self._log(meter, progress)
            with meter.paused():
                stop = self._evaluate_if_due()
                if to_save:
                    self.save()
        progress.close()
        return self._end(meter, progress)

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self.config.training.train_steps

    def _end(self, meter: "Meter", progress: Any) -> int:
        """Save what is not saved yet, whatever ended the steps. Returns the exit code."""
        self._wait_for_save()
        if self.step > self.saved_step:  # a stop between two saves, or the last one failed
            if meter.has_steps:
                self._log(meter, progress)
            self.save()
            problem = self._wait_for_save()
            if problem:
                raise UserError(f"step {self.step} could not be saved ({problem}): mend that, then run the same again")
        if self.step < self.config.training.train_steps:
            log.info("asked to stop: %d of %d steps are done and saved", self.step, self.config.training.train_steps)
            if self.is_main:
                append_event(self.run_dir, "stopped by a signal", self.step, f"exit code {REQUEUE_EXIT_CODE}")
            return REQUEUE_EXIT_CODE
        if self.is_main:
            write_atomically(self.run_dir / "DONE", f"{self.step} steps\n")
            log.info("done: %d steps; the last checkpoint is %s", self.step, self.run_dir / "checkpoints/latest")
        return 0

    def _read_rows(self) -> tuple[list[Batch], bool]:
        """This rank's rows of the next step, and whether to stop before it."""
        self.watchdog.move("reading rows", self.step)
        with self.gauges.data_wait(), self.own_time.host():
            batches, problem = _try_to_read(lambda: self.data.step(self.step * self.config.training.global_batch_size))
        return batches or [], self._agree(problem)

    def _agree(self, problem: str) -> bool:
        """What stops one rank stops all: with one line, or (True) because a signal came."""
        self.watchdog.move("waiting for the others", self.step)
        problem, stop = self.agreement.reach(problem)
        if problem:
            raise UserError(problem)
        return stop

    def train_step(self, batches: list[Batch]) -> StepSums:
        """One step. A step whose gradients are not finite updates nothing.

        It still consumes its rows and its place in the learning-rate schedule, so that both follow from
        the number of the step alone.
        """
        training = self.config.training
        self.watchdog.move("counting masked tokens", self.step)
        weight = torch.stack([self.objective.weight(batch) for batch in batches]).sum().double()
        dist.all_reduce(weight, group=data_parallel_group())
        # DeepSpeed averages over ranks and accumulation steps; the loss is a sum over the global
        # count of masked tokens, so the average is undone here.
        scale = (self.data_parallel_size * len(batches) / weight).float()
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, training.train_steps, self.config.optimizer)
        seed_dropout(training.seed, self.step, self.data_rank)
        sums = {LOSS: torch.zeros((), device=self.device)}
        gradient_norm = None
        for batch in batches:
            self.watchdog.move("in the forward pass", self.step)
            with self.own_time.forward():
                computed = self.objective(self.engine, batch)
            self.watchdog.move("in the backward pass", self.step)
            self.engine.backward(computed.loss_sum * scale)
            gradient_norm = update_weights(self.engine, self.config.optimizer.clip_grad)
            sums[LOSS] += computed.loss_sum.detach()
            for name, value in computed.extra_sums.items():
                metric = f"objective/{name}"
                sums[metric] = sums.get(metric, 0.0) + value.detach()
        self.own_time.end_step()
        assert gradient_norm is not None
        return StepSums(sums=sums, weight=weight, gradient_norm=gradient_norm)

    def _stop_if_diverged(self, skipped_in_a_row: int) -> None:
        if skipped_in_a_row >= self.config.training.max_skipped_steps:
            what = (
                f"{skipped_in_a_row} steps in a row up to step {self.step} were skipped, their gradients are not finite"
            )
            if self.is_main:
                append_event(self.run_dir, "diverged", self.step, what)
            raise UserError(
                f"{what}: continue from the last checkpoint with a larger training.max_skipped_steps, or start anew "
                "with a smaller optimizer.lr"
            )

    # ---------------------------------------------------------------------------------- records

    def _log(self, meter: "Meter", progress: Any) -> None:
        """Write the metrics since the last log; every rank calls this."""
        self.watchdog.move("adding up losses", self.step)
        points = meter.flush(self.step, self.engine)
        self.skipped_steps = meter.skipped_steps
        own_seconds = self.agreement.gather(self.own_time.take())
        self._report_saves()
        if self.spool is not None:
            self._write_points(self.spool, points, own_seconds, progress)
        self._stop_if_diverged(meter.longest_skipped)

    def _write_points(
        self, spool: Spool, points: dict[int, dict[str, float]], own_seconds: list[float], progress: Any
    ) -> None:
        self._check_newest()
        points[self.step] |= self.gauges.read(self.step, points[self.step]["train/step_seconds"])
        if self.world.size > 1:
            step_seconds = points[self.step]["train/step_seconds"]
            points[self.step]["train/straggler_ratio"] = self._straggler_ratio(own_seconds, step_seconds)
        for step, metrics in points.items():
            spool.write(step, metrics)
        last = points[self.step]
        remaining = (self.config.training.train_steps - self.step) * last["train/step_seconds"]
        line = f"loss {last['train/loss']:.4f}  {last['train/tokens_per_second']:,.0f} tokens/s"
        if self.skipped_steps:
            line += f"  {self.skipped_steps} steps skipped"
        if progress.disable:
            log.info("step %d/%d  %s  ETA %.0f s", self.step, self.config.training.train_steps, line, remaining)
        else:
            progress.set_postfix_str(line)
        self._report_changes()
        if self.shipper is not None:
            self.shipper.keep_alive()

    def _straggler_ratio(self, own_seconds: list[float], step_seconds: float) -> float:
        """Slowest over median own time; a rank that stays behind is named."""
        ratio, slowest = self.stragglers.update(own_seconds, step_seconds)
        if slowest is not None:
            text = (
                f"rank {slowest} on {self.hosts[slowest]} takes {own_seconds[slowest]:.3g} s of its own a step, "
                f"{ratio:.1f} times the median rank's"
            )
            log.warning("slow: %s", text)
            append_event(self.run_dir, "straggler", self.step, text)
        return ratio

    def _report_changes(self) -> None:
        assert self.spool is not None
        for change in self.spool.changed:
            log.warning("not deterministic: %s", change)
            append_event(self.run_dir, "not deterministic", self.step, change)
        self.spool.changed.clear()

    def _evaluate_if_due(self) -> bool:
        """Evaluate where that is due and not done yet. Returns whether all were asked to stop."""
        due = self._is_due(self.config.training.eval_interval)
        if due and self._first_evaluation:
            # A stop or a kill may have come between a checkpoint and its evaluation.
            known = self.spool is not None and self.spool.has(self.step, "validation/loss")
            due = not self.agreement.gather(known)[0]
        self._first_evaluation = False
        return self.evaluate() if due else False

    def evaluate(self) -> bool:
        """Evaluate on the validation split and write the figures; given up when a signal comes (True)."""
        training = self.config.training
        self.watchdog.move("reading validation rows", self.step)
        batches, problem = _try_to_read(
            lambda: list(
                validation_batches(
                    self.shards,
                    max_rows=training.eval_rows,
                    micro_batch_size=training.micro_batch_size,
                    data_rank=self.data_rank,
                    data_parallel_size=self.data_parallel_size,
                )
            )
        )
        if self._agree(problem):
            return True

        def go_on() -> bool:
            stop = self._agree("")
            self.watchdog.move("evaluating", self.step)
            return not stop

        result = evaluate(self.engine.module, batches or [], self.device, go_on)
        if result is None:
            return True
        if self.spool is not None:
            figures = {
                "validation/loss": result.loss,
                "validation/masked_accuracy": result.masked_accuracy,
                "validation/perplexity": result.perplexity,
            }
            self.spool.write(self.step, figures | self.gauges.consumed(self.step))
            self._report_changes()
            log.info(
                "step %d  validation loss %.4f, masked accuracy %.4f", self.step, result.loss, result.masked_accuracy
            )
        return False

    def save(self) -> None:
        """Begin to write a checkpoint of the current step; its end is reported at a later log."""
        state = TrainerState(
            step=self.step,
            rows_consumed=self.step * self.config.training.global_batch_size,
            optimizer_steps=optimizer_steps(self.engine),
            skipped_steps=self.skipped_steps,
            loss_scaler=loss_scaler_state(self.engine),
            lineage_id=self.attempt.lineage_id,
            attempt=self.attempt.number,
            data_root_hash=self.shards.root_hash,
            vocab_size=self.shards.vocab_size,
            config=redact(config_as_dict(self.config)),
        )
        self.watchdog.move("saving", self.step)
        if self.spool is not None:
            self.spool.sync()  # a resume from here does not compute those losses again
        blocked = self.writer.save(state)
        if self.spool is not None:
            self.spool.write(self.step, {"checkpoint/blocking_seconds": blocked})
        self._report_saves()

    def _report_saves(self) -> str:
        """Say how the saves that have ended went; the last one's problem."""
        problem = ""
        for saved in self.writer.finished():
            problem = saved.problem
            if problem:
                log.warning("step %d  NOT SAVED, the next save tries anew: %s", saved.step, problem)
                if self.is_main:
                    with contextlib.suppress(OSError):  # the disk that was full for the checkpoint
                        append_event(self.run_dir, "checkpoint failed", saved.step, problem)
                continue
            self.saved_step = saved.step
            if self.spool is not None:
                self.spool.write(saved.step, {"checkpoint/seconds": saved.seconds})
                log.info("step %d  saved %s", saved.step, saved.folder)
        return problem

    def _wait_for_save(self) -> str:
        self.watchdog.move("waiting for the checkpoint's writer", self.step)
        self.writer.wait()
        return self._report_saves()

    def close(self) -> None:
        """End the writer and rank 0's records; what MLflow did not get stays on disk."""
        self.data.close()
        self._wait_for_save()
        if self.spool is not None:
            self.spool.close()
        if self.shipper is not None and not self.shipper.finish():
            log.warning(
                "MLflow did not get all metrics (see %s): they are kept, send them with: narrowbert sync %s",
                self.run_dir / "logs/tracking.log", self.run_dir,
            )  # fmt: skip


def _try_to_read(read: Callable[[], T]) -> tuple[T | None, str]:
    """What was read, or why it could not be."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def _terminal_has_width() -> bool:
    # In a terminal of unknown size, as some containers give, a bar would show nothing: log lines instead.
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


def _set_up_logging(run_dir: Path, world: World) -> None:
    """Rank 0 speaks on the terminal and in its log file, the others in their log files."""
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    handlers: list[logging.Handler] = []
    started_here = "NARROWBERT_LAUNCHER_PID" in os.environ
    if world.rank == 0 or started_here:  # started here, the output of ranks from 1 on *is* their log file
        handlers.append(logging.StreamHandler(sys.stdout))
    if world.rank == 0 or not started_here:
        handlers.append(logging.FileHandler(run_dir / f"logs/rank-{world.rank}.log"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)

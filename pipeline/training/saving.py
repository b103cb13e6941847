"""When checkpoints are written, and how their writing went."""

import logging
import time
from typing import Any, NoReturn

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.redaction import redact
from pipeline.checkpoints.format import TrainerState
from pipeline.checkpoints.restore import optimizer_steps
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.data.row_schedule import RowSchedule
from pipeline.engine.deepspeed_engine import loss_scaler_state
from pipeline.engine.protocol import Engine
from pipeline.processes.ranks import Ranks
from pipeline.processes.signals import LostConnectionError
from pipeline.runs.attempts import Attempt
from pipeline.runs.time_budget import TimeBudget
from pipeline.training.records import Records

log = logging.getLogger("narrowbert")


class Saver:
    """Writes checkpoints in the background of the training.

    Args:
        writer: of the run's checkpoints.
        engine: whose state is saved.
        config: of the run.
        shards: what it reads.
        attempt: which start of the run this is.
        ranks: this process among the others.
        records: told how each save went.
        budget: knows how long the run has taken.
        step: of the checkpoint that this start has resumed from; 0 if there was none.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        engine: Engine,
        config: RunConfig,
        shards: Mixture,
        attempt: Attempt,
        ranks: Ranks,
        records: Records,
        budget: TimeBudget,
        step: int,
    ) -> None:
        self.saved_step = step
        self._failed_in_a_row = 0
        self._writer, self._engine, self._ranks, self._records = writer, engine, ranks, records
        self._budget = budget
        self.config, self._shards, self._attempt = config, shards, attempt
        self._schedule = RowSchedule(config.training, shards.row_shape)

    def begin(self, step: int, skipped_steps: int, spikes: dict[str, Any] | None) -> None:
        """Begin to write a checkpoint after ``step`` steps; its end is reported at a later log.

        Args:
            step: steps done.
            skipped_steps: of those.
            spikes: what later steps are compared with.

        Raises:
            UserError: too many saves in a row have failed; on every rank.
            LostConnectionError: no save can work any more.
        """
        started = time.perf_counter()
        self.wait(step)  # from here on every rank knows the same of the saves before
        self._check_failures()
        state = TrainerState(
            step=step,
            rows_consumed=self._attempt.first_row + self._schedule.rows_before(step),
            optimizer_steps=optimizer_steps(self._engine),
            skipped_steps=skipped_steps,
            loss_scaler=loss_scaler_state(self._engine),
            spikes=spikes,
            lineage_id=self._attempt.lineage_id,
            attempt=self._attempt.number,
            data_root_hash=self._shards.root_hash,
            vocab_size=self._shards.vocab_size,
            config=redact(config_as_dict(self.config)),
            parent=self._attempt.parent,
            training_seconds=self._budget.seconds,
            fixed_end=self._budget.fixed_end,
        )
        self._ranks.reached("saving", step)
        self._records.sync()  # a resume from here does not compute those losses again
        self._writer.save(state)
        self._records.write(step, {"checkpoint/blocking_seconds": time.perf_counter() - started})

    def report(self) -> str:
        """Report how the saves that have ended went. Returns the last one's problem, or nothing.

        Raises:
            LostConnectionError: no save can work any more.
        """
        problem = ""
        for saved in self._writer.finished():
            problem = saved.problem
            self._failed_in_a_row = self._failed_in_a_row + 1 if problem else 0
            if saved.lost_connection:
                self._end_unsaved(saved.step, problem)
            if problem:
                log.warning("step %d  NOT SAVED, the next save tries again: %s", saved.step, problem)
                self._records.event("checkpoint failed", saved.step, problem)
                continue
            self.saved_step = saved.step
            self._records.write(saved.step, {"checkpoint/seconds": saved.seconds})
            if self._ranks.is_main:
                log.info("step %d  saved %s", saved.step, saved.folder)
        return problem

    def _end_unsaved(self, step: int, problem: str) -> NoReturn:
        text = f"the ranks lost each other while they saved step {step} ({problem})"
        self._records.event("checkpoint failed", step, text)
        raise LostConnectionError(f"{text}: run the same command again to resume from the last checkpoint")

    def _check_failures(self) -> None:
        limit = self.config.training.max_failed_saves
        if self._failed_in_a_row >= limit:
            raise UserError(
                f"{self._failed_in_a_row} checkpoints in a row could not be written (training.max_failed_saves is "
                f"{limit}; events.jsonl says why): make room, then run the same command again to resume "
                "from the last one"
            )

    def wait(self, step: int) -> str:
        """Wait for an unfinished save, and report it. Returns its problem, or nothing."""
        self._ranks.reached("waiting for the checkpoint's writer", step)
        self._writer.wait()
        return self.report()

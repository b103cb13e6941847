"""When checkpoints are written, and how their writing went."""

import contextlib
import logging

from data_prep.contract.command_line import config_as_dict
from data_prep.contract.redaction import redact
from pipeline.checkpoints.format import TrainerState
from pipeline.checkpoints.restore import optimizer_steps
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.data.mixture import Mixture
from pipeline.engine.deepspeed_engine import loss_scaler_state
from pipeline.engine.protocol import Engine
from pipeline.processes.ranks import Ranks
from pipeline.runs.attempts import Attempt
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
        step: int,
    ) -> None:
        self.saved_step = step
        self._writer, self._engine, self._ranks, self._records = writer, engine, ranks, records
        self._config, self._shards, self._attempt = config, shards, attempt

    def begin(self, step: int, skipped_steps: int) -> None:
        """Begin to write a checkpoint after ``step`` steps; its end is reported at a later log."""
        state = TrainerState(
            step=step,
            rows_consumed=step * self._config.training.global_batch_size,
            optimizer_steps=optimizer_steps(self._engine),
            skipped_steps=skipped_steps,
            loss_scaler=loss_scaler_state(self._engine),
            lineage_id=self._attempt.lineage_id,
            attempt=self._attempt.number,
            data_root_hash=self._shards.root_hash,
            vocab_size=self._shards.vocab_size,
            config=redact(config_as_dict(self._config)),
        )
        self._ranks.reached("saving", step)
        self._records.sync()  # a resume from here does not compute those losses again
        blocked_seconds = self._writer.save(state)
        self._records.write(step, {"checkpoint/blocking_seconds": blocked_seconds})
        self.report()

    def report(self) -> str:
        """Report how the saves that have ended went. Returns the last one's problem, or nothing."""
        problem = ""
        for saved in self._writer.finished():
            problem = saved.problem
            if problem:
                log.warning("step %d  NOT SAVED, the next save tries again: %s", saved.step, problem)
                with contextlib.suppress(OSError):  # the disk that was full for the checkpoint
                    self._records.event("checkpoint failed", saved.step, problem)
                continue
            self.saved_step = saved.step
            self._records.write(saved.step, {"checkpoint/seconds": saved.seconds})
            if self._ranks.is_main:
                log.info("step %d  saved %s", saved.step, saved.folder)
        return problem

    def wait(self, step: int) -> str:
        """Wait for an unfinished save, and report it. Returns its problem, or nothing."""
        self._ranks.reached("waiting for the checkpoint's writer", step)
        self._writer.wait()
        return self.report()

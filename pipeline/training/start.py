"""How a start of a run begins: it registers, resumes or initialises, and opens its records."""

import dataclasses
import logging
from pathlib import Path

import torch

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.choosing import choose_intact
from pipeline.checkpoints.format import TrainerState, remove_unfinished
from pipeline.checkpoints.reading import checkpoint_folders, load_weights, read_trainer_state
from pipeline.checkpoints.restore import load_optimizer
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import RunConfig
from pipeline.data.batches import TrainingData
from pipeline.data.mixture import Mixture
from pipeline.data.prefetch import Prefetcher
from pipeline.engine.attention_kernel import attention_kernel
from pipeline.engine.bf16_products import has_bf16_products
from pipeline.engine.deepspeed_engine import build_engine
from pipeline.engine.protocol import Engine
from pipeline.engine.spikes import Spikes
from pipeline.initialisation.from_run import choose_parent, load_parent_optimizer, load_parent_weights
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.processes.agreement import from_rank_0
from pipeline.processes.ranks import Ranks
from pipeline.processes.stragglers import OwnTime
from pipeline.processes.world import World
from pipeline.runs.attempts import Attempt, is_newest_attempt, register_attempt
from pipeline.runs.records import append_event
from pipeline.runs.time_budget import TimeBudget, end_of, record_end, with_end
from pipeline.training.gauges import Gauges
from pipeline.training.meter import Meter
from pipeline.training.objective import Objective
from pipeline.training.reading import RowReader
from pipeline.training.records import Records
from pipeline.training.saving import Saver
from pipeline.training.step import Trainer
from pipeline.training.terminal import set_up_logging
from pipeline.training.validation import Validation

log = logging.getLogger("narrowbert")


@dataclasses.dataclass(kw_only=True)
class Run:
    """One start of a run: how far it has come, and who does what in its loop."""

    config: RunConfig
    """Of the run."""
    step: int
    """Steps done; the only field that changes."""
    ranks: Ranks
    """This process among the others."""
    engine: Engine
    """The model in training."""
    rows: RowReader
    """Reads the rows of each step."""
    trainer: Trainer
    """Does the steps."""
    meter: Meter
    """Collects their figures."""
    records: Records
    """Writes the figures down."""
    validation: Validation
    """Evaluates on the validation split."""
    saver: Saver
    """Writes checkpoints."""
    budget: TimeBudget
    """Knows when the run must come to its end."""

    @property
    def train_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.training.train_steps

    def is_due(self, interval: int) -> bool:
        """Whether something that is done every ``interval`` steps, and after the last, is due now."""
        return self.step % interval == 0 or self.step == self.train_steps

    def begin_decay(self) -> None:
        """Let the decay begin with the next step, and write down that it did; every rank calls this."""
        end = self.budget.fixed_end = end_of(self.config, self.step)
        config = with_end(self.config, end)
        from_rank_0(lambda: record_end(config, end))  # before a step has such a rate: a resume goes by the record
        self.config = self.trainer.config = self.meter.config = self.saver.config = self.budget.config = config
        self.rows.config = config.training
        self.records.follow(config, self.step)
        text = f"the decay begins after step {end['decay_begins']}, and the run ends with step {end['train_steps']}"
        self.records.event("time budget", self.step, text)
        log.info("training.time_budget_hours: %s", text)

    def close(self, error: BaseException | None = None) -> None:
        """End the reader, the writer and the records.

        Args:
            error: what ends the run; what goes wrong on the way out does not take its place.

        Raises:
            Exception: the first thing that goes wrong, where nothing has before.
        """
        first = error
        for end in (self.rows.close, lambda: self.saver.wait(self.step), self.records.close):
            try:
                end()
            except Exception as further:
                if first is None:
                    first = further
                else:
                    log.warning("at the end of the run: %s", further)
        if first is not None and first is not error:
            raise first


def register(config: RunConfig, world: World, shards: Mixture) -> Attempt:
    """Register one more start of the run; every rank calls this."""
    parent = choose_parent(config, shards, world)
    return from_rank_0(lambda: register_attempt(Path(config.run_dir), config, shards, world.size, parent))


def open_run(
    config: RunConfig, shards: Mixture, objective: Objective, ranks: Ranks, attempt: Attempt, device: torch.device
) -> Run:
    """Bring this start of the run to where its first step can be done; every rank calls this.

    The order is the same on every rank, since most of it waits for the others.

    Raises:
        UserError: no checkpoint is intact, the weights cannot be read, or a newer start has taken over.
    """
    run_dir, training = Path(config.run_dir), config.training
    set_up_logging(run_dir, ranks.world)
    if ranks.is_main:
        _log_arithmetic(config, shards, device)

    # Rows: read ahead from the first one asked for.
    data = _open_rows(config, shards, objective, ranks, attempt, device)

    # Weights: of the newest intact checkpoint, of another run or model, or new ones.
    engine, state = _build_or_resume(config, shards, ranks.world, attempt, device)
    step = state.step if state else 0
    budget = TimeBudget(config, state.training_seconds if state else 0.0)

    # Checkpoints: memory for their copies is taken now.
    writer = CheckpointWriter(
        engine,
        run_dir / "checkpoints",
        keep_last=training.keep_last,
        keep_every=training.keep_every,
        may_commit=lambda: is_newest_attempt(run_dir, attempt.number),
        on_progress=ranks.watchdog.keep_alive,
    )

    # Records: what is there from earlier starts is kept.
    gauges, own_time = Gauges(config, shards, ranks.world.size, attempt, device), OwnTime(device)
    records = Records(config, attempt, ranks, gauges, own_time)
    records.open(shards, step, str(device))

    return Run(
        config=config,
        step=step,
        ranks=ranks,
        engine=engine,
        rows=RowReader(data, training, ranks, gauges, own_time, budget.is_due),
        trainer=Trainer(
            engine,
            objective,
            config,
            ranks,
            own_time,
            device,
            attempt.steps_before,
            Spikes(training.spike_sigma, state.spikes if state else None),
        ),
        meter=Meter(config, shards, state.skipped_steps if state else 0),
        records=records,
        validation=Validation(engine, shards, config, attempt, ranks, gauges, records, device),
        saver=Saver(writer, engine, config, shards, attempt, ranks, records, budget, step),
        budget=budget,
    )


def _log_arithmetic(config: RunConfig, shards: Mixture, device: torch.device) -> None:
    """Say which kernels compute, where that is not in the configuration."""
    training = config.training
    if training.precision == "bf16" and not has_bf16_products(device):
        log.warning("this processor has no bf16 products: they are computed in fp32, at no more than its speed")
    if training.precision == "fp32" and device.type == "cuda":
        tf32 = torch.backends.cuda.matmul.allow_tf32
        log.info("products are computed in %s", "TF32" if tf32 else "full fp32, which a GPU is slow at: TF32 is off")
    found = {padded: attention_kernel(config, shards.row_shape, device, padded=padded) for padded in (False, True)}
    padded = "" if found[True] == found[False] else f"; with padded rows by {found[True]}"
    log.info("attention is computed by %s%s", found[False], padded)


def _open_rows(
    config: RunConfig, shards: Mixture, objective: Objective, ranks: Ranks, attempt: Attempt, device: torch.device
) -> Prefetcher:
    data = TrainingData(
        shards,
        config.training,
        seed=config.data.seed,
        data_rank=ranks.data_rank,
        data_parallel_size=ranks.data_parallel_size,
        order_version=attempt.order_version,
        first_row=attempt.first_row,
    )
    return Prefetcher(
        data,
        objective.weight,
        device,
        num_workers=config.data.num_workers,
        prefetch_factor=config.data.prefetch_factor,
    )


def _build_or_resume(
    config: RunConfig, shards: Mixture, world: World, attempt: Attempt, device: torch.device
) -> tuple[Engine, TrainerState | None]:
    """Build the engine. Returns it, and what the run goes on from, if it has saved anything."""
    torch.manual_seed(config.training.seed)  # the same initial weights on every rank
    padded_size = padded_vocab_size(shards.vocab_size, config.training.tensor_model_parallel_size)
    model = NarrowBertForPretraining(config.model, shards.vocab_size, padded_size)
    folder = _choose_checkpoint(Path(config.run_dir), world)
    if folder is not None:
        state = read_trainer_state(folder)
        load_weights(model, folder)
        engine = build_engine(config, model, device, shards.row_shape, attempt.eval_masked_per_row)
        load_optimizer(engine, folder, state)
        log.info("resuming from %s (step %d of %d)", folder, state.step, config.training.train_steps)
        return engine, state
    parent = attempt.parent
    if parent is not None:
        load_parent_weights(model, config, shards, parent)
        engine = build_engine(config, model, device, shards.row_shape, attempt.eval_masked_per_row)
        load_parent_optimizer(engine, config, shards, parent)
        return engine, None
    if config.init.from_huggingface is not None:
        # Imports transformers, which no other start needs.
        from pipeline.initialisation.load import load_init

        for line in load_init(model, config, shards):
            log.info(line)
    return build_engine(config, model, device, shards.row_shape, attempt.eval_masked_per_row), None


def _choose_checkpoint(run_dir: Path, world: World) -> Path | None:
    """The newest intact checkpoint, the same on every rank; None where nothing was saved yet."""
    checkpoints = run_dir / "checkpoints"

    def candidates() -> list[Path]:
        remove_unfinished(checkpoints)
        return checkpoint_folders(checkpoints)

    folder, problems = choose_intact(from_rank_0(candidates), world)
    for problem in problems:
        log.warning("checkpoint passed over: %s", problem)
        if world.rank == 0:
            append_event(run_dir, "checkpoint passed over", 0, problem)
    if folder is None and problems:
        raise UserError(f"no checkpoint of {run_dir} is intact: restore one, or start again in another --run_dir")
    return folder

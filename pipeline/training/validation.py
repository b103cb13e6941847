"""Held-out masked-LM loss and accuracy."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.reading import load_run_model
from pipeline.config import RunConfig
from pipeline.data.batches import Batch, validation_batches
from pipeline.data.mixture import Mixture
from pipeline.engine.protocol import Engine
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.groups import data_parallel_group
from pipeline.processes.ranks import Ranks
from pipeline.runs.attempts import Attempt
from pipeline.runs.directory import open_run_shards, read_run_record
from pipeline.training.gauges import Gauges
from pipeline.training.reading import try_to_read
from pipeline.training.records import Records

log = logging.getLogger("narrowbert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures over the masked tokens of the validation rows."""

    loss: float
    """Mean cross-entropy in nats."""
    masked_accuracy: float
    """Share of masked tokens whose most probable prediction is right."""
    num_masked: int
    """Masked tokens evaluated."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@torch.no_grad()
def evaluate(
    model: NarrowBertForPretraining,
    batches: Iterable[Batch],
    device: torch.device,
    may_continue: Callable[[], bool] = lambda: True,
) -> Evaluation | None:
    """Evaluate ``batches`` on this process and add the sums of all data-parallel ranks.

    Args:
        model: its training mode is restored afterwards.
        batches: as many on every rank.
        device: the model's.
        may_continue: asked before each batch; the same answer on every rank. After a no the result is None.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        if not may_continue():
            model.train(was_training)
            return None
        moved = batch.to(device)
        output = model(
            moved.input_ids,
            moved.masked_positions,
            moved.key_mask,
            moved.labels,
            moved.label_mask,
            moved.document_ids,
            count_correct=True,
        )
        assert output.num_correct is not None
        sums += torch.stack([output.loss_sum, output.num_correct, moved.label_mask.sum()]).double()
    model.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(sums, group=data_parallel_group())
    loss_sum, num_correct, num_masked = sums.tolist()
    return Evaluation(loss=loss_sum / num_masked, masked_accuracy=num_correct / num_masked, num_masked=int(num_masked))


class Validation:
    """The evaluations of a run beside its training.

    Args:
        engine: whose model is evaluated.
        shards: whose validation rows are read.
        config: of the run: how many rows, in what micro-batches, and what it has grown out of.
        attempt: this start: how many masked positions of a row it evaluates.
        ranks: this process among the others.
        gauges: what the figures are plotted against.
        records: where the figures go.
        device: of this process.
    """

    def __init__(
        self,
        engine: Engine,
        shards: Mixture,
        config: RunConfig,
        attempt: Attempt,
        ranks: Ranks,
        gauges: Gauges,
        records: Records,
        device: torch.device,
    ) -> None:
        self._engine, self._shards, self._device = engine, shards, device
        self._config, self._training, self._parent = config, config.training, attempt.parent
        self._masked_per_row = attempt.eval_masked_per_row
        self._ranks, self._gauges, self._records = ranks, gauges, records
        self._has_rows = shards.split("validation").num_rows > 0
        if not self._has_rows and ranks.is_main:
            log.info("the shards have no validation rows: this run evaluates nothing")

    def catch_up(self, step: int) -> bool:
        """``run``, unless it was done before: a stop or a kill may have come between a checkpoint and its evaluation.

        Returns:
            Whether all were asked to stop.
        """
        if self._records.has(step, "validation/loss"):
            return False
        has_grown = step == 0 and self._config.init.growth is not None and self._has_rows
        return (has_grown and self._measure_source(step)) or self.run(step)

    def _measure_source(self, step: int) -> bool:
        """Write down the loss of the smaller model, in the precision of this one; result as of ``run``."""
        from pipeline.initialisation.growth.source_model import source_model  # imports transformers

        source = source_model(self._config, self._shards, self._parent)
        dtype = next(self._engine.module.parameters()).dtype
        result = self._measure(source.to(self._device, dtype), step)
        if result is not None and self._ranks.is_main:
            text = f"the smaller model has a validation loss of {result.loss:.4f}"
            self._records.event("grown", step, text)
            log.info("%s, on the same rows", text)
        return result is None

    def run(self, step: int) -> bool:
        """Evaluate on the validation split, if there is one, after ``step`` steps and write the figures.

        Returns:
            Whether all were asked to stop; the evaluation is then given up.

        Raises:
            UserError: on every rank, if any cannot read its rows.
        """
        if not self._has_rows:
            return False
        result = self._measure(self._engine.module, step)
        if result is None:
            return True
        if self._ranks.is_main:
            figures = {
                "validation/loss": result.loss,
                "validation/masked_accuracy": result.masked_accuracy,
                "validation/perplexity": result.perplexity,
            }
            self._records.write(step, figures | self._gauges.consumed(step))
            log.info("step %d  validation loss %.4f, masked accuracy %.4f", step, result.loss, result.masked_accuracy)
        return False

    def _measure(self, model: NarrowBertForPretraining, step: int) -> Evaluation | None:
        """Evaluate a model; None after a stop. ``UserError`` as of ``run``."""
        self._ranks.reached("reading validation rows", step)
        batches, problem = try_to_read(
            lambda: list(
                validation_batches(
                    self._shards,
                    max_rows=self._training.eval_rows,
                    micro_batch_size=self._training.micro_batch_size,
                    data_rank=self._ranks.data_rank,
                    data_parallel_size=self._ranks.data_parallel_size,
                    masked_per_row=self._masked_per_row,
                )
            )
        )
        if self._ranks.agree(problem, step):
            return None

        def may_continue() -> bool:
            stop = self._ranks.agree("", step)
            self._ranks.reached("evaluating", step)
            return not stop

        return evaluate(model, batches or [], self._device, may_continue)


def evaluate_run(run_dir: Path, max_rows: int | None = None) -> tuple[int, Evaluation]:
    """Evaluate a run's newest checkpoint in fp32 on its validation split, in this process, on a GPU if there is one.

    The masked positions are those of the run's own evaluations.

    Args:
        run_dir: the run's directory.
        max_rows: validation rows to read; all where it is None.

    Returns:
        The checkpoint's step and what was measured.

    Raises:
        UserError: no run, no intact checkpoint, or the shards are not those of the run or have no validation rows.
    """
    if max_rows is not None and max_rows < 1:
        raise UserError(f"max_rows is {max_rows}: give a positive number")
    model, state = load_run_model(run_dir)
    shards = open_run_shards(run_dir)
    rows = shards.split("validation").num_rows
    if not rows:
        raise UserError(
            f"{' and '.join(shards.names)}: no validation rows, so {run_dir} cannot be evaluated; prepare shards with "
            "a validation_fraction above 0, or with validation_paths, and go on with them in a new run, by "
            f"--init.from_run {run_dir}"
        )
    batches = validation_batches(
        shards,
        max_rows=max_rows or rows,
        micro_batch_size=state.config["training"]["micro_batch_size"],
        data_rank=0,
        data_parallel_size=1,
        masked_per_row=read_run_record(run_dir).get("eval_masked_per_row"),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = evaluate(model.to(device), batches, device)
    assert result is not None
    return state.step, result

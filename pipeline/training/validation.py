"""Held-out masked-LM loss and accuracy."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.contract.command_line import UserError
from pipeline.checkpoints.reading import load_run_model
from pipeline.data.batches import Batch, validation_batches
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.parallel.groups import data_parallel_group
from pipeline.runs.directory import open_run_shards


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
    go_on: Callable[[], bool] = lambda: True,
) -> Evaluation | None:
    """Evaluate ``batches`` on this process and add the sums of all data-parallel ranks.

    Args:
        model: its mode, training or not, is as before afterwards.
        batches: as many on every rank.
        device: the model's.
        go_on: asked before each batch; the same answer on every rank. After a no the result is None.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        if not go_on():
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


def evaluate_run(run_dir: Path, max_rows: int | None) -> str:
    """Evaluate a run's newest checkpoint in fp32 on its validation split, in this process.

    Raises:
        UserError: no run, no intact checkpoint, or the shards are not those of the run.
    """
    if max_rows is not None and max_rows < 1:
        raise UserError(f"max_rows is {max_rows}: give a positive number")
    model, state = load_run_model(run_dir)
    shards = open_run_shards(run_dir)
    batches = validation_batches(
        shards,
        max_rows=max_rows or shards.split("validation").num_rows,
        micro_batch_size=state.config["training"]["micro_batch_size"],
        data_rank=0,
        data_parallel_size=1,
    )
    result = evaluate(model, batches, torch.device("cpu"))
    assert result is not None
    return (
        f"step {state.step}  validation loss {result.loss:.4f}  perplexity {result.perplexity:.2f}  "
        f"masked accuracy {result.masked_accuracy:.4f}  ({result.num_masked:,} masked tokens)"
    )

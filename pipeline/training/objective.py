"""What a run optimises: the socket for losses other than the masked-language-model loss."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch

from pipeline.data.batches import Batch
from pipeline.engine.protocol import ForwardPass


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSums:
    """What an objective has computed for one micro-batch: sums, never means."""

    loss_sum: torch.Tensor
    """Scalar to differentiate: the loss, summed over the micro-batch."""
    extra_sums: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """Other scalars to record, by name. Each is summed over the step, divided by the step's weight and recorded as
    ``objective/NAME``. The names are the same on every rank and in every micro-batch."""


class Objective(Protocol):
    """A loss to train with.

    The trainer minimises, in every step, the sum of ``loss_sum`` over all micro-batches of all ranks, divided by the
    sum of their ``weight``. This quotient is recorded as ``train/loss``. The division is the trainer's: the weight
    of a whole step is known only when all ranks have added theirs.

    An objective must compute the same for the same batch, so that a resumed run repeats its losses. It may draw
    random numbers from torch's generator, which is seeded from the step and the rank before the first forward pass.
    An objective with weights of its own (a teacher) moves them to the device of the batch, and does not train them.
    """

    def weight(self, batch: Batch) -> torch.Tensor:
        """How many terms the loss of a micro-batch has; called for every micro-batch before any forward pass.

        It is called in the threads that read ahead, and must follow from the batch alone.

        Args:
            batch: one micro-batch of this rank, still on the CPU, so that no device has to be asked.

        Returns:
            A scalar, such as the number of masked positions.
        """
        ...

    def __call__(self, model: ForwardPass, batch: Batch) -> ObjectiveSums:
        """Compute the loss of one micro-batch; called once for each, and followed by the backward pass.

        Args:
            model: the model that is trained. Call it exactly once, with tensors of the shapes of ``batch``.
            batch: one micro-batch of this rank, on its device.
        """
        ...


class MaskedLanguageModelling:
    """Cross-entropy of the original tokens at the masked positions, in nats."""

    def weight(self, batch: Batch) -> torch.Tensor:
        """The masked positions that count."""
        return batch.label_mask.sum()

    def __call__(self, model: ForwardPass, batch: Batch) -> ObjectiveSums:
        """One forward pass; the loss is the model's own."""
        output = model(
            batch.input_ids,
            batch.masked_positions,
            batch.key_mask,
            batch.labels,
            batch.label_mask,
            batch.document_ids,
        )
        return ObjectiveSums(loss_sum=output.loss_sum)


MASKED_LANGUAGE_MODELLING = MaskedLanguageModelling()
"""What NarrowBERT is pretrained with."""

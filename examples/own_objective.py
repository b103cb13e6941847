"""Train with a loss of your own: ``own_objective.py CONFIG.yaml SHARD_FOLDER RUN_DIR``.

The loss is cross-entropy with label smoothing. Distillation has the same form: compute the teacher's logits in
``__call__`` and compare the model's with them.
"""

import sys

import torch
import torch.nn.functional as F

import narrowbert


class LabelSmoothing:
    """Cross-entropy at the masked positions against targets that are smoothed by ``epsilon``."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def weight(self, batch: narrowbert.Batch) -> torch.Tensor:
        """The masked positions that count."""
        return batch.label_mask.sum()

    def __call__(self, model: narrowbert.ForwardPass, batch: narrowbert.Batch) -> narrowbert.ObjectiveSums:
        """One forward pass, and the sum of the losses."""
        output = model(
            batch.input_ids,
            batch.masked_positions,
            batch.key_mask,
            batch.labels,
            batch.label_mask,
            batch.document_ids,
            return_logits=True,
        )
        assert output.logits is not None
        logits, labels = output.logits[batch.label_mask].float(), batch.labels[batch.label_mask]
        smoothed = F.cross_entropy(logits, labels, label_smoothing=self.epsilon, reduction="sum")
        plain = F.cross_entropy(logits.detach(), labels, reduction="sum")
        return narrowbert.ObjectiveSums(loss_sum=smoothed, extra_sums={"plain_loss": plain})


def main(config_path: str, shard_folder: str, run_dir: str) -> int:
    """Train; the exit code of the run."""
    options = {"data.path": shard_folder, "run_dir": run_dir}
    return narrowbert.train(narrowbert.run_config(config_path, options=options), LabelSmoothing(0.1))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: own_objective.py CONFIG.yaml SHARD_FOLDER RUN_DIR")
    try:
        sys.exit(main(*sys.argv[1:]))
    except narrowbert.UserError as error:
        sys.exit(f"own_objective.py: {error}")

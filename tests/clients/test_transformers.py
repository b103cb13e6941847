"""What other libraries make of an export: what is right, or plainly an error."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.trainer_pt_utils import LabelSmoother

from pipeline.export import NarrowBertForMaskedLM
from tests.tiny_exports import MASK, batch, shaken, tiny_config, write_folder


def masked_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows of which three positions are to be predicted; one of them holds another token, as BERT's masking has it."""
    ids, mask = batch(12, 9)
    labels = torch.full_like(ids, -100)
    for position in (1, 4, 6):
        labels[:, position] = ids[:, position]
    ids[:, [1, 4]] = MASK
    ids[:, 6] = 7
    return {"input_ids": ids, "attention_mask": mask}, labels


def test_a_loss_with_smoothed_labels_is_that_over_all_targets() -> None:
    model = shaken(
        NarrowBertForMaskedLM, tiny_config("2sf:2sf", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )
    model.train()
    inputs, labels = masked_batch()
    targets = torch.tensor([[1, 4, 6], [1, 4, 6]])
    exact = model(**inputs, narrow_positions=targets).logits
    expected = LabelSmoother(epsilon=0.1)({"logits": exact}, labels.gather(1, targets))
    found = LabelSmoother(epsilon=0.1)(model(**inputs), labels)  # the Trainer takes the labels away
    torch.testing.assert_close(found, expected)
    # Evaluated it computes the positions that hold [MASK], and the loss over others is plainly none.
    assert LabelSmoother(epsilon=0.1)(model.eval()(**inputs), labels).isnan()
    assert model(**inputs).logits[:, [1, 4]].isfinite().all()
    assert model(**inputs, labels=labels).logits.isfinite().all()


def test_a_number_of_layers_that_the_layout_does_not_have_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForMaskedLM, "2sf:2sf")
    with pytest.raises(
        ValueError, match=r"^num_hidden_layers 3: the layout '2sf:2sf' has 4 layers; give another layout$"
    ):
        AutoModelForMaskedLM.from_pretrained(folder, num_hidden_layers=3)
    assert AutoConfig.from_pretrained(folder, num_hidden_layers=4).num_hidden_layers == 4

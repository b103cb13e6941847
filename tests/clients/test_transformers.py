"""transformers: every pipeline and the Trainer on every layout; what is right, or plainly an error."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, pipeline
from transformers.trainer_pt_utils import LabelSmoother

from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)
from tests.clients.layouts import LAYOUTS, each_layout, first_output
from tests.marks import long_unless
from tests.tiny_exports import MASK, assert_close, batch, shaken, tiny_config, write_folder


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


# --- pipelines --------------------------------------------------------------------------------------------


TEXTS = ["the cat sat on the [MASK] .", "a [MASK] ran"]


def alone(folder: Path, model_class: Any, text: str) -> tuple[list[int], torch.Tensor]:
    """Ids and first output of a text without padding."""
    encoded = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return encoded["input_ids"][0].tolist(), model_class.from_pretrained(folder).eval()(**encoded)[0][0]


@each_layout
def test_fill_mask(exported: Callable[..., Path], kind: str) -> None:
    folder = exported(kind, NarrowBertForMaskedLM)
    for text, found in zip(TEXTS, pipeline("fill-mask", str(folder), device="cpu")(TEXTS, top_k=2), strict=True):
        ids, logits = alone(folder, NarrowBertForMaskedLM, text)
        best = logits[ids.index(MASK)].softmax(-1).topk(2)
        assert [guess["token"] for guess in found] == best.indices.tolist()
        assert_close(torch.tensor([guess["score"] for guess in found]), best.values)


@each_layout
def test_feature_extraction(exported: Callable[..., Path], kind: str) -> None:
    folder = exported(kind, NarrowBertForMaskedLM)
    found: Any = pipeline("feature-extraction", str(folder), device="cpu")(TEXTS, return_tensors=True)
    for text, states in zip(TEXTS, found, strict=True):
        assert_close(states[0], alone(folder, NarrowBertModel, text)[1])


@each_layout
def test_text_classification(exported: Callable[..., Path], kind: str) -> None:
    folder = exported(kind, NarrowBertForSequenceClassification, num_labels=3)
    classify = pipeline("text-classification", str(folder), device="cpu", top_k=3)
    for text, found in zip(TEXTS, classify(TEXTS, batch_size=2), strict=True):
        scores = alone(folder, NarrowBertForSequenceClassification, text)[1].softmax(-1)
        assert_close(torch.tensor([x["score"] for x in sorted(found, key=lambda x: x["label"])]), scores)


def test_zero_shot_classification(exported: Callable[..., Path]) -> None:
    names = {0: "entailment", 1: "neutral", 2: "contradiction"}
    numbers = {name: number for number, name in names.items()}
    folder = exported("sparse_queries", NarrowBertForSequenceClassification, id2label=names, label2id=numbers)
    found: Any = pipeline("zero-shot-classification", str(folder), device="cpu")(
        "the cat sat", ["mat", "road"], hypothesis_template="a {}"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = NarrowBertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        scores = [
            model(**tokenizer("the cat sat", f"a {name}", return_tensors="pt")).logits[0, 0] for name in found["labels"]
        ]
    assert_close(torch.tensor(found["scores"]), torch.stack(scores).softmax(0))


@each_layout
def test_token_classification(exported: Callable[..., Path], kind: str) -> None:
    folder = exported(kind, NarrowBertForTokenClassification, num_labels=3)
    tag = pipeline("token-classification", str(folder), device="cpu", ignore_labels=[])
    for text, found in zip(TEXTS, tag(TEXTS), strict=True):
        ids, logits = alone(folder, NarrowBertForTokenClassification, text)
        inside = list(range(1, len(ids) - 1))  # without [CLS] and [SEP]
        assert [row["index"] for row in found] == inside
        best = logits.softmax(-1).max(-1)
        assert [int(row["entity"][-1]) for row in found] == best.indices[inside].tolist()
        assert_close(torch.tensor([float(row["score"]) for row in found]), best.values[inside])


# --- Trainer ----------------------------------------------------------------------------------------------


HEADS = {
    "AutoModelForMaskedLM": NarrowBertForMaskedLM,
    "AutoModelForQuestionAnswering": NarrowBertForQuestionAnswering,
    "AutoModelForSequenceClassification": NarrowBertForSequenceClassification,
    "AutoModelForTokenClassification": NarrowBertForTokenClassification,
}


def examples(head: str) -> list[dict[str, torch.Tensor]]:
    """Rows of full length, with labels that can be learnt from the ids."""
    ids = torch.randint(5, 48, (32, 12), generator=torch.Generator().manual_seed(3))
    rows = []
    for row in ids:
        place = int(row[1:].argmin()) + 1
        if head == "AutoModelForSequenceClassification":
            labels = {"labels": (row[0] > 25).long()}
        elif head == "AutoModelForQuestionAnswering":
            labels = {"start_positions": torch.tensor(place), "end_positions": torch.tensor(place)}
        elif head == "AutoModelForTokenClassification":
            labels = {"labels": (row > 25).long()}
        else:
            labels = {"labels": torch.where(torch.arange(12) == place, row, -100)}
            row = torch.where(torch.arange(12) == place, MASK, row)
        rows.append({"input_ids": row, "attention_mask": torch.ones(12, dtype=torch.long), **labels})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head"),
    long_unless(
        lambda kind, head: kind == "shared_keys" or (kind == "modern" and head == "AutoModelForMaskedLM"),
        itertools.product(LAYOUTS, HEADS),
    ),
)
def test_what_the_trainer_made_is_saved_and_loaded(
    exported: Callable[..., Path], tmp_path: Path, kind: str, head: str
) -> None:
    folder = exported(kind, NarrowBertForMaskedLM, initializer_range=0.1)
    labels = {} if head in ("AutoModelForMaskedLM", "AutoModelForQuestionAnswering") else {"num_labels": 2}
    model = getattr(transformers, head).from_pretrained(folder, **labels)
    assert type(model) is HEADS[head]
    options = TrainingArguments(
        str(tmp_path), num_train_epochs=20, per_device_train_batch_size=16, learning_rate=3e-3, report_to="none",
        save_strategy="epoch", save_total_limit=1, use_cpu=True, logging_strategy="epoch", seed=1,
    )  # fmt: skip
    trainer = Trainer(model=model, args=options, train_dataset=examples(head), eval_dataset=examples(head))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.8 * before
    trainer.save_model(str(tmp_path / "saved"))
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    inputs = {name: torch.stack([row[name] for row in examples(head)]) for name in ("input_ids", "attention_mask")}
    for saved in (tmp_path / "saved", checkpoint):
        again, info = getattr(transformers, head).from_pretrained(
            saved, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
        assert not any(info.values())
        assert_close(first_output(again.eval(), **inputs), first_output(model.eval(), **inputs))
    resumed = Trainer(model=again, args=options, eval_dataset=examples(head))
    assert abs(resumed.evaluate()["eval_loss"] - after) < 1e-4

"""peft: an adapter that is saved and put on the export again gives the outputs of the trained model."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model

from pipeline.export import (
    NarrowBertForMaskedLM,
    NarrowBertForQuestionAnswering,
    NarrowBertForSequenceClassification,
    NarrowBertForTokenClassification,
    NarrowBertModel,
)
from pipeline.export.folder import AUTO_MAP
from tests.clients.layouts import LAYOUTS, first_output, masked_inputs
from tests.marks import long_unless
from tests.tiny_exports import assert_close

TASKS = {
    "SEQ_CLS": NarrowBertForSequenceClassification,
    "TOKEN_CLS": NarrowBertForTokenClassification,
    "QUESTION_ANS": NarrowBertForQuestionAnswering,
    "FEATURE_EXTRACTION": NarrowBertModel,
    None: NarrowBertForMaskedLM,
}

# Every layout with the head that has a pooler, every head with one layout; all pairs where time does not matter.
PAIRS = long_unless(lambda kind, task: task == "SEQ_CLS" or kind == "shared_keys", itertools.product(LAYOUTS, TASKS))


def labels_of(task: str | None) -> dict[str, torch.Tensor]:
    if task == "SEQ_CLS":
        return {"labels": torch.tensor([0, 2, 1])}
    if task == "QUESTION_ANS":
        return {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 4, 3])}
    return {"labels": masked_inputs()["input_ids"] % 3} if task != "FEATURE_EXTRACTION" else {}


def load(model_class: Any, folder: Path, seed: int) -> Any:
    torch.manual_seed(seed)  # what is new is drawn from it
    labels = {} if model_class in (NarrowBertModel, NarrowBertForQuestionAnswering) else {"num_labels": 3}
    return model_class.from_pretrained(folder, **labels)


def tuned(folder: Path, task: Any, **options: Any) -> Any:
    """A few steps of LoRA on a masked-LM export."""
    config = LoraConfig(task_type=task, target_modules=["query", "key", "value", "dense"], r=4, **options)
    model: Any = get_peft_model(load(TASKS[task], folder, 1), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        outputs = model(**masked_inputs(), **labels_of(task))
        loss = outputs[0][:, :, 0].mean() if task == "FEATURE_EXTRACTION" else outputs.loss
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("kind", "task"), PAIRS)
def test_an_adapter_on_the_export_gives_what_was_trained(
    exported: Callable[..., Path], tmp_path: Path, kind: str, task: str | None
) -> None:
    folder = exported(kind, NarrowBertForMaskedLM)
    model = tuned(folder, task)
    expected = first_output(model, **masked_inputs())
    untrained = load(TASKS[task], folder, 1).eval()
    assert not torch.allclose(first_output(untrained, **masked_inputs()), expected, atol=1e-3)
    model.save_pretrained(tmp_path)
    again: Any = PeftModel.from_pretrained(load(TASKS[task], folder, 2), str(tmp_path)).eval()
    assert_close(first_output(again, **masked_inputs()), expected, 1e-6)
    merged = again.merge_and_unload()  # whose narrow layers fold again
    assert_close(first_output(merged, **masked_inputs()), expected, 1e-3)


def test_the_adapter_alone_is_enough_for_its_auto_class(exported: Callable[..., Path], tmp_path: Path) -> None:
    model = tuned(exported("sparse_queries", NarrowBertForMaskedLM), "SEQ_CLS")
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    again = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path), num_labels=3).eval()
    assert_close(first_output(again, **masked_inputs()), first_output(model, **masked_inputs()), 1e-6)


def test_a_pooler_may_be_trained_and_saved_with_the_adapter(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder = exported("sparse_queries", NarrowBertForMaskedLM)
    model = tuned(folder, "SEQ_CLS", modules_to_save=["pooler"])
    model.save_pretrained(tmp_path)
    new = load(NarrowBertForSequenceClassification, folder, 2)
    trained = model.base_model.model.bert.pooler.modules_to_save["default"].dense.weight
    assert not torch.allclose(trained, new.bert.pooler.dense.weight, atol=1e-3)
    again: Any = PeftModel.from_pretrained(new, str(tmp_path)).eval()
    assert_close(first_output(again, **masked_inputs()), first_output(model, **masked_inputs()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_pooler_does_not_depend_on_the_seed(exported: Callable[..., Path], dtype: torch.dtype) -> None:
    folder = exported("sparse_queries", NarrowBertForMaskedLM)
    poolers, classifiers = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = NarrowBertForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=dtype)
        poolers.append(model.bert.pooler.dense.weight)
        classifiers.append(model.classifier.weight)
    assert poolers[0].equal(poolers[1])
    assert not classifiers[0].equal(classifiers[1])
    spread = model.config.initializer_range
    assert 0.9 * spread < poolers[0].float().std() < 1.1 * spread


def test_a_pooler_of_the_checkpoint_is_loaded(exported: Callable[..., Path]) -> None:
    folder = exported("sparse_queries", NarrowBertForSequenceClassification)
    model = NarrowBertForSequenceClassification.from_pretrained(folder)
    new = NarrowBertForSequenceClassification(model.config)
    assert not model.bert.pooler.dense.bias.equal(new.bert.pooler.dense.bias)  # the tiny export's biases are not 0


LOAD = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
torch.manual_seed(int(sys.argv[2]))
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "pipeline" not in sys.modules
print(json.dumps(model.bert.pooler.dense.weight.tolist()))
"""


@pytest.mark.slow
def test_a_new_pooler_of_the_exports_own_code_does_not_depend_on_the_seed(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported("sparse_queries", NarrowBertForMaskedLM), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    poolers = [
        subprocess.run(
            [sys.executable, "-P", "-c", LOAD, str(folder), seed], cwd=tmp_path, env=environment, check=True,
            capture_output=True, text=True, timeout=300,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    ]  # fmt: skip
    assert poolers[0] == poolers[1]
    here = load(NarrowBertForSequenceClassification, exported("sparse_queries", NarrowBertForMaskedLM), 3)
    assert json.loads(poolers[0]) == here.bert.pooler.dense.weight.tolist()

"""What holds on a CPU holds on a GPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.export import NarrowBertForMaskedLM
from tests import tiny_exports
from tests.gpu.machines import CPU, GPU, ON, PROCESSES, train
from tests.processes import run_command

pytestmark = pytest.mark.slow
DEVICE = torch.device(ON or "cpu")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> list[float]:
    """The losses of one process on a CPU, fp32."""
    return train(tmp_path_factory.mktemp("expected") / "run", shard_folder, machine=CPU)


def test_the_losses_are_those_of_a_cpu(tmp_path: Path, shard_folder: Path, expected: list[float]) -> None:
    assert train(tmp_path / "run", shard_folder, machine=GPU) == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < expected[0] - 0.2


@pytest.mark.parametrize(
    "options",
    [
        ["--model.document_attention", "isolated"],
        ["--model.document_attention", "isolated", "--model.position", "alibi"],
        ["--model.position", "rope", "--model.normalization", "pre", "--model.activation", "geglu"],
        ["--model.narrow_kv", "shared", "--model.recompute", "true"],
    ],
    ids=["isolated", "alibi", "rope", "shared"],
)
def test_options_of_the_model_do_the_same(tmp_path: Path, shard_folder: Path, options: list[str]) -> None:
    found = train(tmp_path / "gpu", shard_folder, *options, machine=GPU)
    assert found == pytest.approx(train(tmp_path / "cpu", shard_folder, *options, machine=CPU), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_curves_of_half_precision_follow_fp32(
    tmp_path: Path, shard_folder: Path, expected: list[float], precision: str
) -> None:
    if precision == "fp16" and ON != "cuda":
        pytest.skip("fp16 needs a GPU")
    found = train(tmp_path / "run", shard_folder, "--training.precision", precision, machine=GPU)
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_every_stage_of_zero_has_the_same_losses(
    tmp_path: Path, shard_folder: Path, expected: list[float], stage: str
) -> None:
    options = ["--training.zero_stage", stage, "--processes", str(PROCESSES)]
    assert train(tmp_path / "run", shard_folder, *options, machine=GPU) == pytest.approx(expected, rel=1e-3)


@pytest.mark.skipif(PROCESSES < 2, reason="one GPU: tensor parallelism needs two")
def test_layers_divided_over_two_have_the_same_losses(
    tmp_path: Path, shard_folder: Path, expected: list[float]
) -> None:
    options = ["--training.tensor_model_parallel_size", "2", "--processes", "2"]
    assert train(tmp_path / "run", shard_folder, *options, machine=GPU) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("first", ["here", "on a CPU"])
def test_a_run_resumes(tmp_path: Path, shard_folder: Path, expected: list[float], first: str) -> None:
    run_dir = tmp_path / "run"
    train(run_dir, shard_folder, machine=GPU if first == "here" else CPU)
    shutil.rmtree(run_dir / "checkpoints/step-00000012")
    (run_dir / "checkpoints/latest").unlink()
    (run_dir / "DONE").unlink()
    assert train(run_dir, shard_folder, machine=GPU) == pytest.approx(expected, rel=1e-3)
    records = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert not [record for record in records if record["kind"] == "checkpoint passed over"]


def test_everything_is_compiled_before_the_second_step(tmp_path: Path, shard_folder: Path) -> None:
    backend = "inductor" if ON == "cuda" else "aot_eager"
    argv = [backend, str(tmp_path / "run"), str(shard_folder), "--training.precision", "fp32"]
    seen = json.loads(run_command("tests.pipeline.training.observe", *argv).stdout.splitlines()[-1])
    assert seen["graphs"] == seen["notes"][0]["graphs"] > 0
    assert not seen["breaks"]
    assert {note["synchronizations"] for note in seen["notes"]} == {seen["notes"][0]["synchronizations"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_an_export_without_its_padding_answers_as_with_it(dtype: torch.dtype) -> None:
    config = tiny_exports.tiny_config("2sf:2sf", heads=4)
    model = tiny_exports.shaken(NarrowBertForMaskedLM, config)
    ids, mask = tiny_exports.batch(12, 5, 9)
    ids[:, 1] = tiny_exports.MASK
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).logits[:, 1]
        found = model.to(DEVICE, dtype)(input_ids=ids.to(DEVICE), attention_mask=mask.to(DEVICE)).logits[:, 1]
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.float().cpu(), wanted, atol=tolerance * float(wanted.abs().max()), rtol=0)


def test_encode_writes_the_vectors_of_a_cpu(tmp_path: Path, shard_folder: Path) -> None:
    train(tmp_path / "run", shard_folder, machine=GPU)
    run_command("pipeline", "export", str(tmp_path / "run"), "--output", str(tmp_path / "model"), **CPU)
    texts = "the model reads a row\nnarrow layers compute few positions in less time\n"
    argv = [sys.executable, "-m", "pipeline", "encode", "--model", str(tmp_path / "model"), "--pooling", "mean"]
    vectors = []
    for machine in (CPU, GPU):
        environment = {**os.environ, **machine}
        printed = subprocess.run(
            argv, input=texts, capture_output=True, text=True, check=True, timeout=300, env=environment
        ).stdout
        vectors.append([json.loads(line)["embedding"] for line in printed.splitlines()])
    torch.testing.assert_close(torch.tensor(vectors[1]), torch.tensor(vectors[0]), atol=1e-3, rtol=1e-3)

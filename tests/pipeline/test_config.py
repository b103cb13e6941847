import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.contract.command_line import UserError, config_as_dict, read_config
from pipeline.commands.runs.train import TrainArguments
from pipeline.config import (
    RESUMABLE_CHANGES,
    SCHEDULE_CHANGES,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)
from pipeline.config_checks import check_config
from pipeline.runs.directory import flatten
from tests.processes import run_command


def training(**values: Any) -> RunConfig:
    return RunConfig(training=TrainingConfig(**values))


def muon(**values: Any) -> RunConfig:
    return RunConfig(optimizer=OptimizerConfig(type="muon"), training=TrainingConfig(**values))


@pytest.mark.parametrize(
    ("config", "world_size", "expected"),
    [
        (training(global_batch_size=100, micro_batch_size=24), 1, "take a micro_batch_size of 5, 10, 20, 25"),
        (training(global_batch_size=101, micro_batch_size=1), 4, "take a global_batch_size of 100 or 104"),
        (training(train_steps=0), 1, "training.train_steps is 0"),
        (training(zero_stage=0), 1, "take zero_stage 1 or 2, or precision fp32"),
        (muon(zero_stage=3), 1, "take zero_stage 1 or 2, or optimizer.type adamw"),
        (muon(offload_optimizer=True), 1, "take offload_optimizer false, or optimizer.type adamw"),
        (muon(zero_stage=3, offload_optimizer=True), 1, "take zero_stage 1 or 2 and offload_optimizer false, or"),
        (training(zero_stage=0, precision="fp32", offload_optimizer=True), 1, "offload_optimizer needs zero_stage 1"),
        (training(spike_sigma=-1.0), 1, "spike_sigma is -1.0: give a number of at least 0"),
        (training(tensor_model_parallel_size=5), 5, "heads, ffn and processes is 1"),
        (training(tensor_model_parallel_size=8), 8, "heads, ffn and processes, and suits the batch, is 1, 2, 4"),
        (training(tensor_model_parallel_size=4), 6, "processes, and suits the batch, is 1, 2, 3, 6"),
        (training(tensor_model_parallel_size=0), 1, "tensor_model_parallel_size is 0"),
        (training(tensor_model_parallel_size=2, global_batch_size=7, micro_batch_size=1), 4, "2 data-parallel groups"),
        (RunConfig(data=DataConfig(num_workers=0)), 1, "data.num_workers is 0: give a positive number"),
        (RunConfig(data=DataConfig(prefetch_factor=-1)), 1, "data.prefetch_factor is -1: give a positive number"),
        (RunConfig(model=ModelConfig(num_attention_heads=7)), 1, "take num_attention_heads of 3, 4, 6, 8"),
        (RunConfig(model=ModelConfig(layout="2sx")), 1, "character 3 (2s>>x<<)"),
        (RunConfig(model=ModelConfig(narrow_kv="grouped:0")), 1, "model.narrow_kv: 'grouped:0' is none of per_layer"),
        (RunConfig(model=ModelConfig(position="rope", num_attention_heads=256)), 1, "but a head has 3 (hidden_size"),
        (RunConfig(model=ModelConfig(rotary_base=0)), 1, "model.rotary_base is 0: give a number above 0"),
        (RunConfig(model=ModelConfig(local_rotary_base=-1)), 1, "model.local_rotary_base is -1: give a number above 0"),
        (RunConfig(model=ModelConfig(skip_first_norm=True)), 1, "it needs model.normalization pre and a sublayer left"),
        (RunConfig(model=ModelConfig(attention_window=7)), 1, "model.attention_window is 7: give an even number of at"),
        (RunConfig(model=ModelConfig(attention_window=0)), 1, "model.attention_window is 0: give an even number of at"),
        (RunConfig(model=ModelConfig(layout="sf:wf")), 1, "model.layout: layout 'sf:wf', character 4 (sf:>>w<<f)"),
        (RunConfig(model=ModelConfig(hidden_dropout=1.0)), 1, "model.hidden_dropout is 1.0"),
        (RunConfig(optimizer=OptimizerConfig(lr=float("nan"))), 1, "optimizer.lr is nan"),
        (RunConfig(optimizer=OptimizerConfig(lr=5e-4, min_lr=1e-2)), 1, "min_lr is 0.01, above optimizer.lr 0.0005"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(config: RunConfig, world_size: int, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(config, world_size=world_size)
    assert expected in str(caught.value)


ADVICE = {
    "global_batch_size": r"take a global_batch_size of ([\d or]+)",
    "micro_batch_size": r"take a micro_batch_size of ([\d, ]+)",
    "num_attention_heads": r"take num_attention_heads of ([\d, ]+)",
    "tensor_model_parallel_size": r"suits the batch, is ([\d, ]+)$",
    "processes": r", or ([\d, ]+) processes$",
}


def advised(message: str) -> list[tuple[str, int]]:
    """Every number that a line recommends, with what it is of."""
    found = [(name, re.search(pattern, message)) for name, pattern in ADVICE.items()]
    return [(name, int(number)) for name, match in found if match for number in re.findall(r"\d+", match[1])]


def refusal(config: RunConfig, world_size: int) -> str:
    try:
        check_config(config, world_size=world_size)
    except UserError as error:
        return str(error)
    return ""


SMALL = st.integers(1, 24)


@given(SMALL, SMALL, SMALL, st.integers(1, 8), st.sampled_from(["absolute", "rope"]), SMALL, SMALL)
@settings(max_examples=1000)
def test_every_number_that_is_advised_is_accepted(
    total: int,
    micro: int,
    processes: int,
    tensor_size: int,
    position: Literal["absolute", "rope"],
    hidden: int,
    heads: int,
) -> None:
    model = ModelConfig(hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=840, position=position)
    sizes = TrainingConfig(global_batch_size=total, micro_batch_size=micro, tensor_model_parallel_size=tensor_size)
    line = refusal(RunConfig(model=model, training=sizes), processes)
    for name, number in advised(line):
        changed = RunConfig(
            model=replace(model, **{name: number}) if name == "num_attention_heads" else model,
            training=replace(sizes, **{name: number}) if hasattr(sizes, name) else sizes,
        )
        again = refusal(changed, number if name == "processes" else processes)
        if name == "num_attention_heads":  # the processes and the batch are looked at later
            assert "num_attention_heads" not in again, (line, again)
        else:
            assert not again, (line, again)


def test_a_precision_is_advised_only_where_it_helps() -> None:
    line = refusal(training(zero_stage=0, offload_optimizer=True), 1)
    assert line.endswith("take zero_stage 1 or 2")
    check_config(training(zero_stage=0, precision="fp32"), world_size=1)


@pytest.mark.parametrize("preset", sorted(Path("configs/pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_complete_and_fit_together(preset: Path) -> None:
    config = read_config(RunConfig, ["--config", str(preset)], "test", "")
    for gpus in (1, 2, 4, 8, 16, 32, 64) if preset.stem != "quickstart" else (1, 2):
        check_config(config, world_size=gpus)
    assert config.run_dir


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.layuot", "12sf"], "did you mean 'model.layout'"),
        (["--train_steps", "3"], "did you mean 'training.train_steps'"),
        (["--model.hidden_size", "wide"], "model.hidden_size"),
        (["--training.precision", "fp64"], "fp64"),
        (["--model.position", "relative"], "model.position"),
        (["--model.normalization", "both"], "model.normalization"),
        (["--model.document_attention", "none"], "model.document_attention"),
        (["--config", "nowhere.yaml"], "cannot read the configuration file nowhere.yaml"),
    ],
)
def test_wrong_options_are_one_line(argv: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(RunConfig, argv, "test", "")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("model:\n  layuot: 12sf\n", "unknown key 'model.layuot', did you mean 'model.layout'"),
        ("modle:\n  layout: 12sf\n", "unknown key 'modle', did you mean 'model'"),
        ("model: {layout: 12sf\n", "is not YAML"),
        ("just text\n", "expected a YAML mapping"),
        ("model:\n  hidden_size: wide\n", "model.hidden_size"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "wrong.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        read_config(RunConfig, ["--config", str(tmp_path / "wrong.yaml")], "test", "")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_print_config_prints_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "printed.yaml").write_text(run_command("pipeline", "train", "--run_dir", "x", "--print_config").stdout)
    config = read_config(TrainArguments, ["--config", str(tmp_path / "printed.yaml")], "test", "")
    assert config == TrainArguments(run_dir="x")


def test_later_files_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: {layout: 4sf, hidden_size: 64}\nrun_dir: a\n")
    (tmp_path / "b.yaml").write_text("model: {layout: 3sf}\n")
    argv = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--run_dir", "c"]
    config = read_config(RunConfig, argv, "test", "")
    assert (config.model.layout, config.model.hidden_size, config.run_dir) == ("3sf", 64, "c")


def test_resumable_changes_name_existing_fields() -> None:
    assert set(flatten(config_as_dict(RunConfig()))) >= RESUMABLE_CHANGES | SCHEDULE_CHANGES

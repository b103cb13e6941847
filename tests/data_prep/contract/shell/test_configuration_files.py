"""A configuration file means what it seems to: no key is lost, no text becomes a number, no ``~`` a folder."""

from pathlib import Path

import pytest

from cluster.__main__ import TrainJobArguments
from data_prep.config import PrepConfig
from data_prep.contract.command_line import UserError, path_argument, read_config


def read(folder: Path, content: str, *options: str, cls: type = TrainJobArguments) -> TrainJobArguments:
    (folder / "x.yaml").write_text(content, encoding="utf-8")
    return read_config(cls, ["--config", str(folder / "x.yaml"), *options], "program", "A program.")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "model:\n  layout: 3sf\ndata:\n  seed: 1\nmodel:\n  bias: false\n",
            "section 'model' stands twice (lines 1 and 5",
        ),
        ("data:\n  seed: 1\n  seed: 2\n", "key 'data.seed' stands twice (lines 2 and 3)"),
        ("data.seed: 1\ndata:\n  seed: 2\n", "key 'data.seed' stands twice (lines 1 and 3)"),
        ("run_dir: ~\n", "line 1: run_dir has no value"),
        ("init:\n  allow: [a, ~]\n", "line 2: init.allow has no value"),
        ("training:\n  train_steps: 1:30\n", "training.train_steps is 1:30: expected a number"),
        ("run_dir: {a: 1}\n", "line 1: run_dir is keys: expected text"),
        ("tracking:\n  run_name: [a]\n", "line 2: tracking.run_name is a list: expected text"),
        ("model: 3\n", "the section 'model' holds no keys"),
        ("[a]: 3\n", "line 1 has a list or a mapping as its key"),
        ("data: &x\n  weights: &y [*y]\n", "is not YAML"),
        ("model: &x\n  more: *x\n", "unknown key 'model.more'"),
    ],
)
def test_what_a_file_cannot_mean_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert expected in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_text_is_text_as_it_is_written(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "cluster:\n  time_limit: 24:00:00\n  partition: 0777\n  job_name: no\n  sbatch_options: [1:00, on]\n"
        "tracking: {run_name: 1e3, experiment_name: 2026-01-02}\n",
    )
    assert config.cluster.time_limit == "24:00:00"
    assert (config.cluster.partition, config.cluster.job_name) == ("0777", "no")
    assert config.cluster.sbatch_options == ("1:00", "on")
    assert (config.tracking.run_name, config.tracking.experiment_name) == ("1e3", "2026-01-02")


def test_numbers_are_decimal_in_files_as_in_options(tmp_path: Path) -> None:
    config = read(tmp_path, "training: {train_steps: 010, seed: 1_000}\noptimizer: {lr: 1e-4}\n")
    assert (config.training.train_steps, config.training.seed, config.optimizer.lr) == (10, 1000, 1e-4)
    config = read(tmp_path, "", "--training.train_steps", "010", "--data.weights", "[010, .inf]")
    assert (config.training.train_steps, config.data.weights) == (10, (10.0, float("inf")))


def test_sections_may_be_empty_merged_dotted_and_in_several_files(tmp_path: Path) -> None:
    (tmp_path / "later.yaml").write_text("model.hidden_size: 8\n")
    config = read(
        tmp_path,
        "\ufeffmodel.bias: false\ntracking:\n"
        "model: &base\n  layout: 3sf\n  hidden_size: 4\n  <<: {layout: 4sf, norm: rmsnorm}\n",
        f"--config={tmp_path / 'later.yaml'}",
        "--data.path",
        "[a, 1]",
    )
    assert (config.model.layout, config.model.hidden_size, config.model.norm) == ("3sf", 8, "rmsnorm")
    assert not config.model.bias
    assert config.data.path == ("a", "1")


def test_home_and_variables_are_replaced_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    config = read(
        tmp_path,
        "run_dir: ~/runs/a\ndata:\n  path: [$SCRATCH/x, '${SCRATCH}/y']\n",
        "--init.from_huggingface=~/bert",
        "--cluster.setup_script=$HOME/env.sh",
        "--tracking.run_name=$HOME",
    )
    assert config.run_dir == "/home/me/runs/a"
    assert config.data.path == ("/scratch/x", "/scratch/y")
    assert config.init.from_huggingface == "/home/me/bert"
    assert config.cluster.setup_script == "/home/me/env.sh"
    assert config.tracking.run_name == "$HOME", "no path"
    prep = read(tmp_path, "corpus:\n  paths: s3://$BUCKET/a//b\noutput: ~\n".replace("~", "~/s"), cls=PrepConfig)
    assert (prep.output, prep.corpus.paths) == ("/home/me/s", "s3://$BUCKET/a//b")  # type: ignore[attr-defined]
    assert path_argument("~/x") == Path("/home/me/x")


def test_a_variable_that_is_not_set_is_named_and_a_dollar_in_a_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(UserError, match=r"run_dir \$NOWHERE/a: the environment variable \$NOWHERE is not set"):
        read(tmp_path, "run_dir: $NOWHERE/a\n")
    with pytest.raises(UserError, match="no home folder of that name"):
        read(tmp_path, "", "--run_dir=~nobody-of-that-name/x")
    (tmp_path / "$NOWHERE").mkdir()
    assert read(tmp_path, "", "--run_dir", str(tmp_path / "$NOWHERE")).run_dir == str(tmp_path / "$NOWHERE")


def test_every_argument_that_is_a_path_is_marked() -> None:
    """Options whose meaning is a file or a folder, by the words that explain them."""
    from dataclasses import fields, is_dataclass

    from data_prep.contract.command_line import field_docstrings
    from pipeline.finetune.config import FinetuneConfig

    def marked(cls: type, prefix: str = "") -> set[str]:
        found = set()
        for field in fields(cls):
            if is_dataclass(field.default_factory):
                found |= marked(field.default_factory, f"{prefix}{field.name}.")  # type: ignore[arg-type]
            elif field.metadata.get("path"):
                found.add(prefix + field.name)
        return found

    for cls in (TrainJobArguments, PrepConfig, FinetuneConfig):
        meant = {
            key for key, text in field_docstrings(cls) if text.startswith(("Folder", "File", "A file", "Python of"))
        }
        assert meant - {"cluster"} <= marked(cls)

"""Runs that start from a smaller model: the same logits, the same loss, on any topology, or refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeline.config import InitConfig, RunConfig
from pipeline.data.mixture import Mixture
from pipeline.initialisation.parent_fit import differences, fit_to
from pipeline.runs.records import read_metrics
from tests.pipeline.initialisation.test_initialisation import bert, configuration, loaded, logits, refusal
from tests.pipeline.initialisation.test_parent_fit import BERT, build, state_of
from tests.processes import TINY_RUN, run_command, user_error

TWICE = {"hidden_size": 64, "num_attention_heads": 8, "ffn_hidden_size": 128}


def grown(config: RunConfig, **init: object) -> RunConfig:
    return dataclasses.replace(config, init=dataclasses.replace(config.init, **{"growth": "fpi", **init}))


def test_a_bert_of_transformers_grows_and_keeps_its_logits(tmp_path: Path, shards: Mixture) -> None:
    bert(tmp_path, shards.vocab_size)
    small, _ = loaded(shards, configuration(tmp_path, "1sf:2sf"))
    large, said = loaded(shards, grown(configuration(tmp_path, "1sf:2sf", **TWICE)))
    torch.testing.assert_close(logits(large, shards.vocab_size), logits(small, shards.vocab_size), rtol=1e-4, atol=1e-4)
    assert "grown by fpi (seed " in said
    assert (
        "hidden_size 32 to 64, num_attention_heads 4 to 8, ffn_hidden_size 64 to 128, layout 1sf:2sf to 1sf:2sf" in said
    )
    assert "something else at first" not in said
    deep, said = loaded(shards, grown(configuration(tmp_path, "6sf", **TWICE)))
    assert "depth stack repeats layers: the model computes something else at first" in said
    assert not torch.equal(logits(deep, shards.vocab_size), logits(large, shards.vocab_size))


def test_sources_that_cannot_grow_are_refused(tmp_path: Path, shards: Mixture) -> None:
    bert(tmp_path, shards.vocab_size)
    for config, expected in (
        (configuration(tmp_path, "3sf"), "it has the same sizes: leave out init.growth"),
        (
            configuration(tmp_path, "1sf:5sf", **TWICE),
            "layout 3sf there, 1sf:5sf here: left of ':' 3 layers 'sf' there",
        ),
        (configuration(tmp_path, "3sf", hidden_size=64), "heads of 8 there, 16 here"),
        (
            configuration(tmp_path, "3sf", ffn_hidden_size=32),
            "model.ffn_hidden_size 64 there, 32 here, which is smaller",
        ),
        (
            configuration(tmp_path, "3sf", **TWICE, activation="geglu"),
            "hidden_act gelu there, model.activation geglu here",
        ),
        (configuration(tmp_path, "5wf", **TWICE), "left of ':' 3 layers 'sf' there, 0 here"),
    ):
        assert expected in refusal(shards, grown(config))


def test_the_weights_of_a_run_grow(shards: Mixture) -> None:
    parent = dataclasses.replace(BERT, max_position_embeddings=32)
    here = dataclasses.replace(parent, layout="1sf:2sf", **TWICE)
    config = RunConfig(model=here, init=InitConfig(from_run="x", growth="fpi"))
    for there in (parent, dataclasses.replace(parent, layout="1sf:2sf")):
        state = state_of(there, shards)
        assert differences(state, config, shards)[0] == []
        small, large = (build(model, shards) for model in (dataclasses.replace(there, layout="1sf:2sf"), here))
        same_layout = RunConfig(model=dataclasses.replace(there, layout="1sf:2sf"))
        theirs = {name: tensor.detach() for name, tensor in build(there, shards).named_parameters()}
        small.load_state_dict({**small.state_dict(), **fit_to(same_layout, shards, state)(theirs)})
        large.load_state_dict({**large.state_dict(), **fit_to(config, shards, state)(theirs)})
        torch.testing.assert_close(
            logits(large, shards.vocab_size), logits(small, shards.vocab_size), rtol=1e-4, atol=1e-4
        )
    wrong, _ = differences(state_of(dataclasses.replace(parent, layout="2sf:1sf"), shards), config, shards)
    assert wrong == ["model.layout 2sf:1sf there, 1sf:2sf here"]  # narrowed elsewhere, which nobody allowed
    wrong, _ = differences(state_of(here, shards), config, shards)
    assert wrong == ["it has the same sizes: leave out init.growth"]


@pytest.mark.slow
def test_a_run_grows_out_of_another(tmp_path: Path, shard_folder: Path) -> None:
    """Step 0 has the parent's last loss, with split layers and split weights too."""
    common = ["--data.path", str(shard_folder), "--training.precision", "fp32", "--training.eval_rows", "32"]
    common += ["--model.hidden_dropout", "0", "--model.attention_dropout", "0"]
    run_command(
        "pipeline", "train", *TINY_RUN, *common, "--run_dir", str(tmp_path / "small"), "--model.layout", "1sf:1sf",
        "--optimizer.lr", "0.03", "--training.train_steps", "20", "--training.eval_interval", "20",
    )  # fmt: skip
    end = dict(read_metrics(tmp_path / "small")["validation/loss"])[20]
    sizes = [word for name, size in TWICE.items() for word in (f"--model.{name}", str(size))]
    growing = [
        "train", *TINY_RUN, *sizes, *common, "--model.layout", "1sf:1sf", "--init.growth", "fpi",
        "--init.from_run", str(tmp_path / "small"), "--optimizer.lr_warmup_steps", "2",
    ]  # fmt: skip
    said = run_command("pipeline", *growing, "--run_dir", str(tmp_path / "large")).stdout
    begin = dict(read_metrics(tmp_path / "large")["validation/loss"])[0]
    assert begin == pytest.approx(end, abs=1e-4)
    assert end < 4.5
    assert f"the smaller model has a validation loss of {end:.4f}, on the same rows" in said
    events = [json.loads(line) for line in (tmp_path / "large/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "grown"] == [0]
    assert "not as there: model.hidden_size 32 there, 64 here" in said
    split = ["--processes", "2", "--training.tensor_model_parallel_size", "2", "--training.zero_stage", "3"]
    run_command("pipeline", *growing, *split, "--run_dir", str(tmp_path / "split"))
    own, other = (dict(read_metrics(tmp_path / name)["train/loss"]) for name in ("large", "split"))
    assert other == pytest.approx(own, abs=1e-4)
    argv = [*growing, "--run_dir", str(tmp_path / "other")]
    assert "init.growth makes new weights" in user_error("pipeline", *argv, "--init.moments", "true")
    said = user_error("pipeline", *growing[:-4], "--run_dir", str(tmp_path / "other"))
    assert "init.growth says how init.from_huggingface or init.from_run grows" in said
    assert not (tmp_path / "other").exists()

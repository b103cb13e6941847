"""Weights from elsewhere: a BERT or the authors' NarrowBERT, in any layout, on any topology, or refused."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    BertTokenizerFast,
)

from data_prep.contract.command_line import UserError
from pipeline.config import InitConfig, ModelConfig, RunConfig
from pipeline.data.mixture import Mixture, open_mixture
from pipeline.export import NarrowBertForMaskedLM
from pipeline.export.names import sublayers
from pipeline.initialisation.load import load_init
from pipeline.initialisation.pretrained import export_pretrained
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.groups import initialise_tensor_parallel
from pipeline.parallel.whole_tensors import gather_shards
from tests.processes import TINY_RUN, losses, run_command, run_ranks, user_error

HIDDEN, HEADS, INNER, LENGTH = 32, 4, 64, 32
Edit = Callable[[dict[str, Any]], Any]


def bert(folder: Path, vocab_size: int, kind: type = BertForMaskedLM, layers: int = 3, length: int = LENGTH) -> Any:
    """A BERT with weights so large that no part of it can be swapped unseen, saved to ``folder``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=HIDDEN, num_hidden_layers=layers, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=length, initializer_range=0.2,
    )  # fmt: skip
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def authors(folder: Path, vocab_size: int, full: int = 1, narrow: int = 2) -> dict[str, torch.Tensor]:
    """A checkpoint as the authors' code writes one: BERT's names, later layers moved to ``encoder_narrow``."""
    state = bert(folder, vocab_size, layers=full + narrow).state_dict()
    for name in list(state):
        parts = name.split(".")
        if parts[1] == "encoder" and int(parts[3]) >= full:
            parts[1], parts[3] = "encoder_narrow", str(int(parts[3]) - full)
            state[".".join(parts)] = state.pop(name)
    save_file({k: v.clone() for k, v in state.items()}, folder / "model.safetensors")
    edit_config(folder, lambda config: config.update(full_length_layers=full))
    return state


def edit_config(folder: Path, edit: Edit) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Edit) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


def configuration(folder: Path, layout: str, *allow: str, **model: Any) -> RunConfig:
    shape = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "ffn_hidden_size": INNER,
        "max_position_embeddings": LENGTH, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    return RunConfig(
        model=ModelConfig(layout=layout, **(shape | model)),
        init=InitConfig(from_huggingface=str(folder), allow=allow),
    )


def loaded(shards: Mixture, config: RunConfig) -> tuple[NarrowBertForPretraining, str]:
    torch.manual_seed(5)
    model = NarrowBertForPretraining(config.model, shards.vocab_size).eval()
    return model, "\n".join(load_init(model, config, shards))


def refusal(shards: Mixture, config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        loaded(shards, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, padding mask, narrow positions."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocab_size, (2, 20), generator=generator)
    return ids, torch.arange(20) < torch.tensor([[20], [13]]), torch.tensor([[0, 3, 19], [12, 1, 7]])


def logits(model: NarrowBertForPretraining, vocab_size: int) -> torch.Tensor:
    ids, mask, places = rows(vocab_size)
    with torch.no_grad():
        return model.logits(ids, places, mask[:, None, None, :])


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining, "old names", "sharded", "bf16", "longer"])
def test_bert_gives_transformers_logits(tmp_path: Path, shards: Mixture, kind: Any) -> None:
    size, allow = shards.vocab_size, []
    model = bert(tmp_path, size, kind if isinstance(kind, type) else BertForMaskedLM, length=40)
    if kind is BertForPreTraining:
        allow = ["bert.pooler.*", "cls.seq_relationship.weight", "cls.seq_relationship.bias"]
    elif kind == "old names":  # of the first BERT checkpoints: gamma and beta, a buffer, tied copies stored

        def rename(state: dict[str, torch.Tensor]) -> None:
            for name in [n for n in state if "LayerNorm" in n]:
                state[name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")] = state.pop(name)
            state["bert.embeddings.position_ids"] = torch.arange(40)[None]
            state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()
            state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")

        edit_tensors(tmp_path, rename)
    elif kind == "sharded":
        (tmp_path / "model.safetensors").unlink()
        model.save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    elif kind == "bf16":
        model.bfloat16().save_pretrained(tmp_path)
        model.float()
    ours, log = loaded(shards, configuration(tmp_path, "3sf", *allow))
    ids, mask, places = rows(size)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
    expected = getattr(output, "logits", getattr(output, "prediction_logits", None))
    assert expected is not None
    expected = expected[torch.arange(2)[:, None], places]
    torch.testing.assert_close(logits(ours, size), expected, atol=1e-5, rtol=0)
    assert "of the 40 position embeddings there the first 32 are used" in log
    assert ("left out: bert.pooler.dense.bias" in log) == (kind is BertForPreTraining)


def test_bert_without_prefix_and_head_keeps_the_head_that_is_named(tmp_path: Path, shards: Mixture) -> None:
    model = bert(tmp_path, shards.vocab_size, BertModel)
    config = configuration(tmp_path, "sf:2sf", "cls.predictions.*", "bert.pooler.*")
    assert "missing: cls.predictions.transform.dense.weight" in refusal(shards, configuration(tmp_path, "sf:2sf"))
    ours, log = loaded(shards, config)
    torch.manual_seed(5)
    fresh = NarrowBertForPretraining(config.model, shards.vocab_size)
    torch.testing.assert_close(ours.head.dense.weight, fresh.head.dense.weight, atol=0, rtol=0)
    assert torch.equal(ours.embeddings.word_embeddings.weight, model.embeddings.word_embeddings.weight)
    assert "as initialised, not from there: cls.predictions.bias" in log


def test_one_part_of_a_packed_matrix_may_stay_as_initialised(tmp_path: Path, shards: Mixture) -> None:
    model = bert(tmp_path, shards.vocab_size)
    name = "bert.encoder.layer.0.attention.self.key.weight"
    edit_tensors(tmp_path, lambda state: state.pop(name))
    config = configuration(tmp_path, "3sf", name)
    torch.manual_seed(5)
    fresh = NarrowBertForPretraining(config.model, shards.vocab_size)

    def parts(ours: NarrowBertForPretraining) -> tuple[torch.Tensor, ...]:
        packed = dict(ours.named_parameters())["encoder.full_sublayers.0.linear_qkv.weight"]
        return packed.view(HEADS, 3, HIDDEN // HEADS, HIDDEN).unbind(1)

    query, key, value = parts(loaded(shards, config)[0])
    attention = model.bert.encoder.layer[0].attention.self
    assert torch.equal(query.flatten(0, 1), attention.query.weight)
    assert torch.equal(key, parts(fresh)[1])
    assert torch.equal(value.flatten(0, 1), attention.value.weight)


class Reference:
    """The released model's arithmetic for one row, one plain product at a time, from a state of BERT's names.

    ``layout`` lists (prefix of the layer that has the weights, letter) left and right of the narrowing point.
    """

    def __init__(self, state: dict[str, torch.Tensor], full: list[tuple[str, str]], narrow: list[tuple[str, str]]):
        self.state, self.full, self.narrow = state, full, narrow

    def logits(self, ids: list[int], position: int) -> torch.Tensor:
        table = "bert.embeddings.{}_embeddings.weight"
        words, places, types = (self.state[table.format(kind)] for kind in ("word", "position", "token_type"))
        state = [self.norm("bert.embeddings", words[i] + places[p] + types[0]) for p, i in enumerate(ids)]
        for layer, letter in self.full:
            state = [self.sublayer(layer, letter, row, state) for row in state]
        row = state[position]
        for layer, letter in self.narrow:
            row = self.sublayer(layer, letter, row, state)  # keys and values of the frozen state, always
        row = torch.nn.functional.gelu(self.linear("cls.predictions.transform.dense", row))
        return words @ self.norm("cls.predictions.transform", row) + self.state["cls.predictions.bias"]

    def sublayer(self, layer: str, letter: str, row: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
        if letter == "f":
            inner = torch.nn.functional.gelu(self.linear(f"{layer}.intermediate.dense", row))
            return self.norm(f"{layer}.output", row + self.linear(f"{layer}.output.dense", inner))
        name, size, heads = f"{layer}.attention.self", HIDDEN // HEADS, []
        query = self.linear(f"{name}.query", row)
        keys = torch.stack([self.linear(f"{name}.key", other) for other in context])
        values = torch.stack([self.linear(f"{name}.value", other) for other in context])
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weights = (keys[:, part] @ query[part] / size**0.5).softmax(0)
            heads.append(weights @ values[:, part])
        mixed = self.linear(f"{layer}.attention.output.dense", torch.cat(heads))
        return self.norm(f"{layer}.attention.output", row + mixed)

    def linear(self, name: str, row: torch.Tensor) -> torch.Tensor:
        return self.state[f"{name}.weight"] @ row + self.state[f"{name}.bias"]

    def norm(self, name: str, row: torch.Tensor) -> torch.Tensor:
        centred = row - row.mean()
        scaled = centred / (centred.square().mean() + 1e-12).sqrt()
        return scaled * self.state[f"{name}.LayerNorm.weight"] + self.state[f"{name}.LayerNorm.bias"]


AUTHORS_FULL = [("bert.encoder.layer.0", letter) for letter in "sf"]
AUTHORS_NARROW = [(f"bert.encoder_narrow.layer.{number}", letter) for number in range(2) for letter in "sf"]


def assert_rows_equal(model: NarrowBertForPretraining, reference: Reference, vocab_size: int) -> None:
    ids, mask, places = rows(vocab_size)
    found = logits(model, vocab_size)
    for row in range(2):
        row_ids = ids[row][mask[row]].tolist()
        for index, place in enumerate(places[row].tolist()):
            expected = reference.logits(row_ids, place)
            torch.testing.assert_close(found[row, index], expected, atol=1e-5, rtol=1e-5)


def test_authors_checkpoint_in_its_own_layout(tmp_path: Path, shards: Mixture) -> None:
    state = authors(tmp_path, shards.vocab_size)
    model, _ = loaded(shards, configuration(tmp_path, "1sf:2sf"))
    assert_rows_equal(model, Reference(state, AUTHORS_FULL, AUTHORS_NARROW), shards.vocab_size)
    line = refusal(shards, configuration(tmp_path, "2sf:1sf"))
    assert "layout sf:2sf there, model.layout 2sf:sf here" in line
    loaded(shards, configuration(tmp_path, "2sf:1sf", "layout"))


@pytest.mark.parametrize("layout", ["1sf:2sf", "sf 2s:2f", ":3sf"])
def test_bert_in_every_kind_of_layout(tmp_path: Path, shards: Mixture, layout: str) -> None:
    state = bert(tmp_path, shards.vocab_size).state_dict()
    model, _ = loaded(shards, configuration(tmp_path, layout))
    # The i-th attention and the i-th feed-forward are those of layer i, wherever they stand.
    order = {
        "1sf:2sf": ("s0 f0", "s1 f1 s2 f2"),
        "sf 2s:2f": ("s0 f0 s1 s2", "f1 f2"),
        ":3sf": ("", "s0 f0 s1 f1 s2 f2"),
    }[layout]
    full, narrow = ([(f"bert.encoder.layer.{part[1]}", part[0]) for part in side.split()] for side in order)
    assert_rows_equal(model, Reference(state, full, narrow), shards.vocab_size)


@pytest.mark.slow
def test_exported_authors_checkpoint_gives_its_logits(tmp_path: Path, shards: Mixture) -> None:
    state = authors(tmp_path / "theirs", shards.vocab_size)
    argv = ["convert", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert "--tokenizer" in user_error("pipeline", *argv)
    run_command("pipeline", *argv, "--tokenizer", str(shards.tokenizer_path))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert isinstance(model, NarrowBertForMaskedLM)
    assert (model.config.layout, model.config.vocab_size) == ("sf:2sf", shards.vocab_size)
    ids, mask, places = rows(shards.vocab_size)
    reference = Reference(state, AUTHORS_FULL, AUTHORS_NARROW)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask.long(), narrow_positions=places).logits
    for row in range(2):
        for index, place in enumerate(places[row].tolist()):
            expected = reference.logits(ids[row][mask[row]].tolist(), place)
            torch.testing.assert_close(found[row, index], expected, atol=1e-5, rtol=1e-5)
    # What is exported loads again through the same option.
    ours, _ = loaded(shards, configuration(tmp_path / "ours", "sf:2sf"))
    assert_rows_equal(ours, reference, shards.vocab_size)


def test_exported_bert_gives_its_logits_and_is_narrowed_when_asked(tmp_path: Path, shards: Mixture) -> None:
    model = bert(tmp_path / "bert", shards.vocab_size, BertForPreTraining)
    arguments: dict[str, Any] = {"tokenizer_path": shards.tokenizer_path, "allow": ["bert.pooler.*", "cls.seq*"]}
    export_pretrained(tmp_path / "bert", tmp_path / "plain", layout=None, **arguments)
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "plain").eval()
    assert exported.config.layout == "3sf"
    ids, mask, places = rows(shards.vocab_size)
    with torch.no_grad():
        found = exported(input_ids=ids, attention_mask=mask.long(), narrow_positions=places).logits
        expected = model(input_ids=ids, attention_mask=mask.long()).prediction_logits
    torch.testing.assert_close(found, expected[torch.arange(2)[:, None], places], atol=1e-5, rtol=1e-5)
    export_pretrained(tmp_path / "bert", tmp_path / "narrow", layout="1sf:2sf", **arguments)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "narrow").config.layout == "sf:2sf"
    edit_tensors(tmp_path / "bert", lambda state: state.pop("cls.predictions.bias"))
    arguments["allow"].append("cls.predictions.bias")
    with pytest.raises(UserError, match=r"lacks what a masked-LM model needs: cls\.predictions\.bias"):
        export_pretrained(tmp_path / "bert", tmp_path / "lacking", layout=None, **arguments)


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("cased", [True, False])
def test_a_vocab_txt_is_read_as_transformers_reads_it(tmp_path: Path, beside: bool, cased: bool) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cafe", "##s", *(["A", "Café"] if cased else [])]
    bert(tmp_path / "bert", len(words))
    path = tmp_path / ("bert" if beside else ".") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    (path.parent / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
    export_pretrained(
        tmp_path / "bert", tmp_path / "out", layout=None, tokenizer_path=None if beside else path, allow=[]
    )
    theirs = BertTokenizerFast.from_pretrained(path.parent)
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("A Cafés the xyz", "[MASK] a"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours(text, "the")["token_type_ids"] == theirs(text, "the")["token_type_ids"]
    assert ours.convert_tokens_to_ids("a") == 5


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda state: state.pop(QUERY), f"missing: {QUERY})"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra)"),
        (lambda state: state.update({QUERY: torch.zeros(3, 32)}), f"{QUERY} [3, 32] instead of [32, 32]"),
        (lambda state: state.update({QUERY: torch.zeros(32, 32, dtype=torch.int8)}), f"not of floating point: {QUERY}"),
        (lambda state: state.update({"cls.predictions.decoder.bias": torch.ones(3)}), "not tied to"),
        (
            lambda state: state.update({"bert.embeddings.position_embeddings.weight": torch.zeros(31, 32)}),
            "position_embeddings.weight [31, 32] instead of [32, 32]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path: Path, shards: Mixture, edit: Edit, expected: str) -> None:
    bert(tmp_path, shards.vocab_size)
    edit_tensors(tmp_path, edit)
    line = refusal(shards, configuration(tmp_path, "1sf:2sf"))
    assert expected in line
    loaded(shards, configuration(tmp_path, "1sf:2sf", "extra" if "extra" in expected else "*"))
    both = refusal(shards, configuration(tmp_path, "1sf:2sf", "*", "bert.typo.*"))
    assert "allow names bert.typo.*" in both


@pytest.mark.parametrize(
    ("edit", "model", "expected"),
    [
        ({}, {"num_attention_heads": 8}, "num_attention_heads 4 there, model.num_attention_heads 8 here"),
        ({"layer_norm_eps": 1e-5}, {}, "layer_norm_eps 1e-05 there, model.layernorm_epsilon 1e-12 here"),
        ({"hidden_act": "relu"}, {}, "hidden_act relu there, model.activation gelu here"),
        ({}, {"normalization": "pre"}, "normalization post there, model.normalization pre here"),
        ({"model_type": "roberta"}, {}, "model_type roberta"),
        ({"is_decoder": True}, {}, "is_decoder true"),
        ({"num_hidden_layers": 4}, {}, "model.layout sf:2sf has 3 s or w and 3 f, the checkpoint 4 s or w and 4 f"),
        ({"full_length_layers": 7}, {}, "full_length_layers 7 and num_hidden_layers 3"),
        ({}, {"narrow_kv": "shared"}, "unexpected: bert.encoder.layer.2.attention.self.key.bias"),
    ],
)
def test_settings_that_do_not_fit_are_listed(
    tmp_path: Path, shards: Mixture, edit: dict[str, Any], model: dict[str, Any], expected: str
) -> None:
    bert(tmp_path, shards.vocab_size)
    edit_config(tmp_path, lambda config: config.update(edit))
    assert expected in refusal(shards, configuration(tmp_path, "1sf:2sf", **model))


def test_narrow_layers_without_full_length_layers(tmp_path: Path, shards: Mixture) -> None:
    authors(tmp_path, shards.vocab_size)
    edit_config(tmp_path, lambda config: config.pop("full_length_layers"))
    assert "full_length_layers None" in refusal(shards, configuration(tmp_path, "1sf:2sf"))


def test_another_vocabulary_or_tokenizer(tmp_path: Path, shards: Mixture) -> None:
    size = shards.vocab_size
    bert(tmp_path / "larger", size + 7)
    line = refusal(shards, configuration(tmp_path / "larger", "1sf:2sf"))
    assert f"a vocabulary of {size + 7}" in line
    assert f"tokenizer.json {size}:" in line
    bert(tmp_path / "same", size)
    words = sorted(json.loads(shards.tokenizer_path.read_text())["model"]["vocab"].items(), key=lambda item: item[1])
    tokens = [word for word, _ in words]
    (tmp_path / "same/vocab.txt").write_text("\n".join(tokens) + "\n")
    loaded(shards, configuration(tmp_path / "same", "1sf:2sf"))
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    (tmp_path / "same/vocab.txt").write_text("\n".join(tokens) + "\n")
    line = refusal(shards, configuration(tmp_path / "same", "1sf:2sf"))
    assert f"tokenizer with other ids for 2 of its {size} tokens" in line


def test_pickle_is_refused_with_a_command_that_converts_it(tmp_path: Path, shards: Mixture) -> None:
    folder = tmp_path / "it's $(touch ran) `touch ran`"  # a shell must see a name, and nothing to run
    folder.mkdir()
    model = bert(folder, shards.vocab_size)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    line = refusal(shards, configuration(folder, "3sf"))
    assert "pytorch_model.bin is a pickle" in line
    command = line.partition("convert it with: ")[2].replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    loaded(shards, configuration(folder, "3sf"))


def test_folders_that_hold_no_model(tmp_path: Path, shards: Mixture) -> None:
    assert "is no folder" in refusal(shards, configuration(tmp_path / "bert-base-uncased", "3sf"))
    assert "has no config.json" in refusal(shards, configuration(tmp_path, "3sf"))
    bert(tmp_path, shards.vocab_size)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-5])
    assert "model.safetensors is damaged or cut short" in refusal(shards, configuration(tmp_path, "3sf"))
    (tmp_path / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(shards, configuration(tmp_path, "3sf"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../b.safetensors"}}')
    assert "is damaged" in refusal(shards, configuration(tmp_path, "3sf"))


@pytest.mark.slow
def test_commands_refuse_before_anything_starts(tmp_path: Path, shard_folder: Path, shards: Mixture) -> None:
    bert(tmp_path / "bert", shards.vocab_size + 1)
    argv = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder)]
    line = user_error(
        "pipeline", *argv, "--init.from_huggingface", str(tmp_path / "bert"), "--processes", "2",
        "--model.layout", "1sf:2sf",
    )  # fmt: skip
    assert f"a vocabulary of {shards.vocab_size + 1}" in line
    assert "init.allow says what may differ" in user_error("pipeline", *argv, "--init.allow", "[x]")
    assert "required: RUN " in user_error("pipeline", "export", "--output", "x")
    assert "required: --output" in user_error("pipeline", "convert", str(tmp_path / "bert"))


@pytest.mark.slow
def test_a_bert_is_narrowed_trained_on_and_resumed_without_it(
    tmp_path: Path, shard_folder: Path, shards: Mixture
) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shards.vocab_size, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=512,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    command = [
        "train", *TINY_RUN, "--data.path", str(shard_folder), "--model.layout", "1sf:2sf",
        "--init.from_huggingface", str(tmp_path / "bert"), "--training.train_steps", "40", "--optimizer.lr", "0.01",
        "--training.precision", "fp32", "--training.save_interval", "20", "--model.hidden_dropout", "0",
        "--model.attention_dropout", "0",
    ]  # fmt: skip
    run_dir = tmp_path / "run"
    first = run_command("pipeline", *command, "--run_dir", str(run_dir))
    curve = losses(run_dir)
    assert sum(curve[step] for step in range(36, 41)) < sum(curve[step] for step in range(1, 6)) - 2.5
    assert f"starting from {tmp_path / 'bert'}" in first.stdout
    assert "of the 512 position embeddings there the first 32 are used" in first.stdout
    assert f"from_huggingface: {tmp_path / 'bert'}" in (run_dir / "config.yaml").read_text()
    # Split layers and split weights hold the same weights from the first step on.
    split = ["--processes", "2", "--training.tensor_model_parallel_size", "2", "--training.zero_stage", "3"]
    run_command("pipeline", *command, *split, "--run_dir", str(tmp_path / "split"))
    assert losses(tmp_path / "split") == pytest.approx(curve, abs=1e-4)
    # The checkpoint wins: the BERT may be gone.
    (tmp_path / "bert").rename(tmp_path / "elsewhere")
    (run_dir / "DONE").unlink()
    for newest in run_dir.glob("checkpoints/step-00000040"):
        newest.rename(tmp_path / "step-40")
    (run_dir / "metrics.jsonl").unlink()
    resumed = run_command("pipeline", *command, "--run_dir", str(run_dir))
    assert "starting from" not in resumed.stdout
    assert losses(run_dir) == {step: loss for step, loss in curve.items() if step > 20}


def compare_split_with_whole(folder: Path, shard_folder: Path) -> None:
    """In each of two ranks: what TP 2 loads, gathered, is what one process loads; so is what it keeps."""
    shards = open_mixture(str(shard_folder), None)
    config = configuration(folder, "sf 1s:sf f", QUERY)
    whole = dict(loaded(shards, config)[0].named_parameters())
    initialise_tensor_parallel(2)
    torch.manual_seed(5)
    split = NarrowBertForPretraining(config.model, shards.vocab_size, padded_vocab_size(shards.vocab_size, 2))
    list(load_init(split, config, shards))
    assert len(list(sublayers(config.model.layout))) == 6
    for name, parameter in split.named_parameters():
        assert torch.equal(gather_shards(parameter.detach(), parameter), whole[name]), name


@pytest.mark.long
def test_two_tensor_parallel_processes_load_the_weights_of_one(
    tmp_path: Path, shard_folder: Path, shards: Mixture
) -> None:
    bert(tmp_path / "bert", shards.vocab_size)
    edit_tensors(tmp_path / "bert", lambda state: state.pop(QUERY))
    run_ranks(
        2,
        lambda rank: [
            "-m",
            "tests.pipeline.initialisation.test_initialisation",
            str(rank),
            str(tmp_path / "bert"),
            str(shard_folder),
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    compare_split_with_whole(folder, Path(sys.argv[3]))
    dist.barrier()
    dist.destroy_process_group()

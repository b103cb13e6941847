"""A model of full layers as a BERT of transformers: the same numbers, and every difference refused by its name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertForMaskedLM
from pipeline.export.names import CONFIG_NAMES, State
from pipeline.export.plain.forms import BERT, FORMS, Form, check_form
from pipeline.export.plain.writing import write_plain
from pipeline.initialisation.pretrained import export_pretrained
from tests.processes import run_command, user_error
from tests.tiny_exports import SPECIAL_IDS, VOCABULARY, assert_close, shaken, tiny_config, write_folder, write_tokenizer


def convert(folder: Path, output: Path, **options: Any) -> Path:
    export_pretrained(folder, output, **({"layout": None, "tokenizer_path": None, "allow": []} | options))
    return output


@settings(max_examples=5, deadline=None)
@given(
    layers=st.integers(1, 3), heads=st.sampled_from([1, 2, 8]), epsilon=st.sampled_from([1e-12, 1e-2]),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
def test_logits_are_those_of_our_own_form(
    tmp_path_factory: pytest.TempPathFactory, layers: int, heads: int, epsilon: float, lengths: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("bert")
    layout = f"{layers}sf"
    write_folder(folder / "ours", NarrowBertForMaskedLM, layout, heads=heads, layer_norm_eps=epsilon)
    ours = NarrowBertForMaskedLM.from_pretrained(folder / "ours").eval()
    theirs = AutoModelForMaskedLM.from_pretrained(
        convert(folder / "ours", folder / "plain", model_type="bert"), trust_remote_code=False
    ).eval()
    assert type(theirs) is BertForMaskedLM
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    ids = torch.randint(VOCABULARY, mask.shape, generator=generator)
    segments = torch.randint(2, mask.shape, generator=generator)
    positions = torch.arange(mask.shape[1]).expand(mask.shape)
    with torch.no_grad():
        for attention_mask, real in ((mask, mask.bool()), (None, torch.ones_like(mask).bool())):
            inputs = {"input_ids": ids, "attention_mask": attention_mask, "token_type_ids": segments}
            expected = ours(**inputs, narrow_positions=positions).logits
            assert_close(theirs(**inputs).logits[real], expected[real], 1e-5)


def test_the_folder_holds_no_code_and_its_card_asks_for_none(tmp_path: Path) -> None:
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, "2sf")
    plain = convert(ours, tmp_path / "plain", model_type="bert")
    names = sorted(path.name for path in plain.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    config = json.loads((plain / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForMaskedLM"])
    assert not {"auto_map", "layout"} & config.keys()
    card = (plain / "README.md").read_text()
    assert "remote" not in card
    assert 'pipeline("fill-mask", model="plain")' in card
    text = AutoTokenizer.from_pretrained(plain)("the cat", "a dog")
    assert text["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert text["input_ids"] == AutoTokenizer.from_pretrained(ours)("the cat", "a dog")["input_ids"]


def test_a_bert_of_transformers_comes_back_as_it_was(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=24, hidden_act="relu", **sizes)
    theirs = shaken(BertForMaskedLM, config)  # type: ignore[type-var, arg-type]
    theirs.save_pretrained(tmp_path / "bert")
    write_tokenizer(tmp_path / "bert/tokenizer.json")
    convert(tmp_path / "bert", tmp_path / "ours")
    for source in ("bert", "ours"):
        again = convert(tmp_path / source, tmp_path / f"again-{source}", model_type="bert")
        found, expected = (load_file(folder / "model.safetensors") for folder in (again, tmp_path / "bert"))
        assert found.keys() == expected.keys()
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
        kept = BertConfig.from_pretrained(again).to_dict()
        given = config.to_dict() | {"architectures": ["BertForMaskedLM"], "dtype": "float32"}
        assert {key: kept[key] for key in given} == given


@pytest.mark.parametrize(
    ("option", "changed", "needed"),
    [
        ("layout", {"layout": "1sf:2sf"}, "sf alone, such as 12sf"),
        ("layout", {"layout": "2sf f"}, "sf alone"),
        ("layout", {"layout": "sf wf"}, "sf alone"),
        ("normalization", {"normalization": "pre"}, "post"),
        ("norm", {"norm": "rmsnorm"}, "layernorm"),
        ("position", {"position_embedding_type": "rope"}, "absolute"),
        ("position", {"position_embedding_type": "alibi"}, "absolute"),
        ("activation", {"hidden_act": "geglu"}, "gelu"),
        ("activation", {"hidden_act": "swiglu"}, "gelu"),
        ("bias", {"bias": False}, "True"),
    ],
)
def test_each_difference_from_a_bert_is_refused(option: str, changed: dict[str, Any], needed: str) -> None:
    (value,) = changed.values()
    with pytest.raises(UserError, match=rf"model\.{option} is {value}, bert needs {needed}.*leave out --model_type"):
        check_form(tiny_config(**({"layout": "3sf"} | changed)), BERT, "NarrowBertForMaskedLM")


def test_all_differences_are_named_at_once() -> None:
    config = tiny_config("1sf:2sf", normalization="pre", norm="rmsnorm", hidden_act="geglu", bias=False)
    with pytest.raises(UserError) as caught:
        check_form(config, BERT, "NarrowBertForMaskedLM")
    assert str(caught.value).count(", bert needs ") == 5


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_option_of_a_model_is_lost_unseen(form: Form) -> None:
    accounted = {need.option for need in form.needs} | form.takes.keys() | form.without_effect
    assert accounted >= set(CONFIG_NAMES.values())
    assert accounted <= tiny_config("1sf").to_dict().keys()


def test_weights_under_wrong_names_are_not_written(tmp_path: Path) -> None:
    def swapped(state: State) -> State:
        marked = {name.replace("self.query", "self.other"): tensor for name, tensor in state.items()}
        marked = {name.replace("self.key", "self.query"): tensor for name, tensor in marked.items()}
        return {name.replace("self.other", "self.key"): tensor for name, tensor in marked.items()}

    model = shaken(NarrowBertForMaskedLM, tiny_config("2sf"))
    with pytest.raises(UserError, match=r"BertForMaskedLM differs by .* from NarrowBertForMaskedLM: not written"):
        write_plain(tmp_path, model, dataclasses.replace(BERT, rename=swapped))


def test_a_weight_that_is_missing_is_not_filled_at_random(tmp_path: Path) -> None:
    def without_bias(state: State) -> State:
        return {name: tensor for name, tensor in state.items() if name != "cls.predictions.bias"}

    model = shaken(NarrowBertForMaskedLM, tiny_config("2sf"))
    with pytest.raises(UserError, match=r"does not load back as written: missing_keys: cls\.predictions\.bias"):
        write_plain(tmp_path, model, dataclasses.replace(BERT, rename=without_bias))


@pytest.mark.slow
def test_the_command_says_how_the_folder_is_loaded(tmp_path: Path) -> None:
    write_folder(tmp_path / "ours", NarrowBertForMaskedLM, "2sf")
    write_folder(tmp_path / "narrow", NarrowBertForMaskedLM, "1sf:1sf")
    argv = ["convert", str(tmp_path / "ours"), "--output", str(tmp_path / "plain"), "--model_type", "bert"]
    printed = run_command("pipeline", *argv).stdout
    assert "loads with transformers: BertForMaskedLM.from_pretrained(...), without remote code" in printed
    argv = ["convert", str(tmp_path / "narrow"), "--output", str(tmp_path / "x"), "--model_type", "bert"]
    assert "model.layout is sf:sf, bert needs sf alone" in user_error("pipeline", *argv)
    assert not (tmp_path / "x").exists()
    argv = ["export", "run", "--output", str(tmp_path / "x"), "--model_type", "bert", "--register", "mine"]
    assert "--register takes no bert" in user_error("pipeline", *argv)
    assert SPECIAL_IDS["mask"] == AutoTokenizer.from_pretrained(tmp_path / "plain").mask_token_id

"""A model of full and windowed layers as a ModernBERT of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
)

from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertForMaskedLM, NarrowBertModel
from pipeline.export.plain.forms import MODERNBERT, check_form
from pipeline.export.plain.modernbert import global_every
from pipeline.export.plain.tuned import export_tuned
from pipeline.initialisation.pretrained import export_pretrained
from tests.tiny_exports import (
    MODERN,
    SPECIAL_IDS,
    VOCABULARY,
    assert_close,
    batch,
    shaken,
    tiny_config,
    write_folder,
    write_tokenizer,
)

LENGTH = 40


def convert(folder: Path, output: Path, **options: Any) -> list[str]:
    return export_pretrained(folder, output, **({"layout": None, "tokenizer_path": None, "allow": []} | options))


@settings(max_examples=5, deadline=None)
@given(
    layout=st.sampled_from(["sf", "3sf", "2sfwf", "sf2wf sf", "sf3wf"]), bias=st.booleans(),
    window=st.sampled_from([2, 8, 64]), bases=st.tuples(st.floats(10, 1e5), st.floats(10, 1e5)),
    lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=3), seed=st.integers(0, 99),
)  # fmt: skip
def test_logits_are_those_of_our_own_form(
    tmp_path_factory: pytest.TempPathFactory, layout: str, bias: bool, window: int, bases: tuple[float, float],
    lengths: list[int], seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("modern")
    own = {"bias": bias, "attention_window": window, "rope_theta": bases[0], "local_rope_theta": bases[1]}
    options = MODERN | own | {"max_position_embeddings": LENGTH, "initializer_range": 0.15}
    write_folder(folder / "ours", NarrowBertForMaskedLM, layout, **options)
    convert(folder / "ours", folder / "plain", model_type="modernbert")
    ours = NarrowBertForMaskedLM.from_pretrained(folder / "ours").eval()
    theirs = AutoModelForMaskedLM.from_pretrained(folder / "plain", trust_remote_code=False).eval()
    assert type(theirs) is ModernBertForMaskedLM
    mask = (torch.arange(LENGTH) < torch.tensor([LENGTH, *lengths]).unsqueeze(1)).long()
    ids = torch.randint(VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(LENGTH).expand(mask.shape)
    with torch.no_grad():
        for attention_mask, real in ((mask, mask.bool()), (None, torch.ones_like(mask).bool())):
            expected = ours(ids, attention_mask=attention_mask, narrow_positions=positions).logits
            found = theirs(ids, attention_mask=attention_mask).logits
            assert_close(found[real], expected[real], 1e-5 * max(1, float(expected[real].abs().max())))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("every", [1, 3, 9])
def test_a_modernbert_of_transformers_comes_back_as_it_was(tmp_path: Path, bias: bool, every: int) -> None:
    biases = dict.fromkeys(["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"], bias)
    config = ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        max_position_embeddings=LENGTH, local_attention=8, global_attn_every_n_layers=every, pad_token_id=0,
        cls_token_id=SPECIAL_IDS["cls"], sep_token_id=SPECIAL_IDS["sep"], bos_token_id=SPECIAL_IDS["cls"],
        eos_token_id=SPECIAL_IDS["sep"], attention_dropout=0.1, norm_eps=1e-4, **biases,
    )  # fmt: skip
    theirs = shaken(ModernBertForMaskedLM, config)  # type: ignore[type-var, arg-type]
    theirs.save_pretrained(tmp_path / "modern")
    write_tokenizer(tmp_path / "modern/tokenizer.json")
    convert(tmp_path / "modern", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", model_type="modernbert")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "modern"))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    kept = ModernBertConfig.from_pretrained(tmp_path / "again").to_dict()
    given = config.to_dict() | {"architectures": ["ModernBertForMaskedLM"], "dtype": "float32"}
    assert {key: kept[key] for key in given if key != "global_attn_every_n_layers"} == {
        key: value for key, value in given.items() if key != "global_attn_every_n_layers"
    }
    ids = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / "again", trust_remote_code=False).eval()
        assert again(ids).logits.equal(theirs(ids).logits)


def test_the_configuration_has_the_keys_of_older_programs(tmp_path: Path) -> None:
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, "2sfwfwf sf", **MODERN, rope_theta=400.0)
    remarks = convert(ours, tmp_path / "plain", model_type="modernbert")
    assert "segments other than the first are left out" in remarks[-1]
    written = json.loads((tmp_path / "plain/config.json").read_text())
    wanted = {"global_attn_every_n_layers": 3, "global_rope_theta": 400.0, "local_rope_theta": 10000.0}
    wanted |= {"layer_norm_eps": 1e-5, "norm_eps": 1e-5, "cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3}
    assert wanted.items() <= written.items()
    assert written["layer_types"] == [f"{'full' if n % 3 == 0 else 'sliding'}_attention" for n in range(7)]
    assert not written["tie_word_embeddings"]  # the first segment is in the words
    assert not list((tmp_path / "plain").glob("*.py"))
    assert set(AutoTokenizer.from_pretrained(tmp_path / "plain")("the cat", "a dog")) == {"input_ids", "attention_mask"}


def test_biases_that_a_server_leaves_out_are_told(tmp_path: Path) -> None:
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, "2sf", **(MODERN | {"bias": True}))
    assert "leaves out the biases" in convert(ours, tmp_path / "plain", model_type="modernbert")[-1]


def test_a_tuned_encoder_gives_what_it_gave(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tuned", NarrowBertModel, "2sfwf", **MODERN)
    export_tuned(folder, tmp_path / "plain", "modernbert", "mean")
    theirs = AutoModel.from_pretrained(tmp_path / "plain", trust_remote_code=False).eval()
    assert type(theirs) is ModernBertModel
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "plain")("the cat")
    ids, mask = batch(12, 5)
    with torch.no_grad():
        expected = NarrowBertModel.from_pretrained(folder).eval()(ids, attention_mask=mask).last_hidden_state
        assert_close(theirs(ids, attention_mask=mask).last_hidden_state[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize(
    ("option", "changed", "needed"),
    [
        *(
            ("layout", {"layout": layout}, "sf as the first")
            for layout in ("sf:2sf", "wf sf", "2sfwf sf f", "sf wf wf 2sf")
        ),
        ("skip_first_norm", {"skip_first_norm": False}, "True"),
        ("norm", {"norm": "rmsnorm"}, "layernorm"),
        ("position", {"position_embedding_type": "absolute"}, "rope"),
        ("position", {"position_embedding_type": "alibi"}, "rope"),
        ("activation", {"hidden_act": "gelu"}, "geglu"),
        ("activation", {"hidden_act": "swiglu"}, "geglu"),
    ],
)
def test_each_difference_from_a_modernbert_is_refused(option: str, changed: dict[str, Any], needed: str) -> None:
    (value,) = changed.values()
    config = tiny_config(**({"layout": "2sfwf"} | MODERN | changed))
    with pytest.raises(UserError, match=rf"model\.{option} is {value}, modernbert needs {needed}"):
        check_form(config, MODERNBERT, "NarrowBertForMaskedLM")


def test_a_post_norm_model_and_a_head_of_its_own_are_refused() -> None:
    config = tiny_config("2sf", position_embedding_type="rope", hidden_act="geglu")
    with pytest.raises(UserError, match=r"is post, modernbert needs pre; model\.skip_first_norm is False"):
        check_form(config, MODERNBERT, "NarrowBertForMaskedLM")
    for name in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        with pytest.raises(UserError, match=f"its class is NarrowBertFor{name}, whose head is not"):
            check_form(tiny_config("2sfwf", **MODERN), MODERNBERT, f"NarrowBertFor{name}")


@pytest.mark.parametrize(("layout", "every"), [("5sf", 1), ("7sfwfwf sf", 3), ("sf4wf", 5), ("sf", 1), ("3sfwf", 2)])
def test_the_pattern_of_global_layers_is_found(layout: str, every: int) -> None:
    assert global_every(tiny_config(layout, **MODERN)) == every

"""A damaged or foreign model folder: one line that names the file, whatever is to be done with the model."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import narrowbert
from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertForMaskedLM, NarrowBertForSequenceClassification
from pipeline.export.model_folder import open_config, open_model, open_tokenizer
from pipeline.export.onnx_files import write_onnx
from pipeline.finetune.config import FinetuneConfig, FinetuneData, FinetuneTracking, FinetuneTraining, check_finetune
from pipeline.finetune.training import finetune
from pipeline.initialisation.pretrained import export_pretrained
from tests.full_disk import full_disk
from tests.processes import user_error
from tests.tiny_exports import HEADS, HIDDEN, INNER, VOCABULARY, write_folder

Damage = Callable[[Path], Any]
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", NarrowBertForMaskedLM)


@pytest.fixture(scope="module")
def sharded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sharded"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    NarrowBertForMaskedLM.from_pretrained(model).save_pretrained(folder, max_shard_size="40KB")
    assert (folder / SHARD).is_file()
    return folder


def tuning(model: Path, folder: Path, labels: str = "xy", **training: Any) -> FinetuneConfig:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(f'{{"text": "the cat", "label": "{x}"}}\n' for x in labels * 4))
    return FinetuneConfig(
        model=str(model), output=str(folder / "out"), tracking=FinetuneTracking(enabled=False),
        data=FinetuneData(train=str(folder / "train.jsonl"), validation=str(folder / "train.jsonl")),
        training=FinetuneTraining(**{"epochs": 1.0, "max_length": 8, "seeds": (1,), **training}),
    )  # fmt: skip


def tune(model: Path, folder: Path) -> None:
    config = tuning(model, folder)
    check_finetune(config)
    finetune(config, say=lambda _: None)


def convert(model: Path, folder: Path) -> None:
    export_pretrained(model, folder / "converted", layout=None, tokenizer_path=None, allow=[])


READERS: dict[str, Callable[[Path, Path], Any]] = {
    "encode": lambda model, _: narrowbert.encode(model, ["the cat"]),
    "load": lambda model, _: narrowbert.load_model(model),
    "onnx": lambda model, _: write_onnx(model),
    "finetune": tune,
    "convert": convert,
}


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def setting(**values: Any) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        edit(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return damage


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut("model.safetensors"), r"model\.safetensors is damaged or cut short"),
        (write("model.safetensors", ""), r"model\.safetensors is damaged or cut short"),
        (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (remove("model.safetensors"), "has no model.safetensors"),
        (write("config.json", ""), r"config\.json is damaged, it is no JSON"),
        (write("config.json", b"\xff\xfe"), r"config\.json is damaged, it is no JSON"),
        (write("config.json", "[1]"), r"config\.json is damaged, it holds no keys"),
        (remove("config.json"), r"it has no config\.json"),
        (setting(model_type="gpt2"), "gpt2"),
        (setting(hidden_size="32"), 'config.json: hidden_size cannot be "32"'),
        (setting(num_attention_heads=0), r"config\.json: num_attention_heads cannot be 0"),
        (setting(pad_token_id=None), r"config\.json: pad_token_id cannot be null"),
        (setting(architectures="NarrowBertModel"), r"config\.json: architectures cannot be"),
        (setting(hidden_act="rellu"), "no hidden_act rellu"),
        (setting(layout="3x"), "layout '3x', character 2"),
        (tensors(lambda state: state.pop(QUERY)), "encoder.layer.0.attention.self.query.weight"),
        (tensors(lambda state: state.update({QUERY: torch.zeros(3, 32)})), r"query\.weight (is )?\[3, 32\]"),
    ],
)
def test_a_damaged_file_is_named(model: Path, tmp_path: Path, damage: Damage, expected: str, reader: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    with pytest.raises(UserError, match=expected) as error:
        READERS[reader](folder, tmp_path / "work")
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut(SHARD), f"{SHARD} is damaged or cut short"),
        (remove(SHARD), f"lacks {SHARD}, named by model.safetensors.index.json"),
        (write("model.safetensors.index.json", "{"), r"index\.json is damaged, it is no JSON"),
        (write("model.safetensors.index.json", "{}"), r"index\.json is damaged: its weight_map"),
    ],
)
def test_a_damaged_shard_is_named(sharded: Path, tmp_path: Path, damage: Damage, expected: str, reader: str) -> None:
    test_a_damaged_file_is_named(sharded, tmp_path, damage, expected, reader)


@pytest.mark.parametrize("reader", ["encode", "finetune"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut("tokenizer.json"), r"tokenizer\.json is damaged or no tokenizer"),
        (write("tokenizer.json", "{}"), r"tokenizer\.json is damaged or no tokenizer"),
        (remove("tokenizer.json"), r"has no tokenizer\.json"),
        (write("tokenizer_config.json", "{"), r"tokenizer_config\.json is damaged"),
        (write("tokenizer_config.json", "[]"), r"tokenizer_config\.json is damaged"),
        (setting(vocab_size=12), "has ids up to 18, config.json a vocab_size of 12: it is another model's"),
    ],
)
def test_a_damaged_tokenizer_is_named(model: Path, tmp_path: Path, damage: Damage, expected: str, reader: str) -> None:
    test_a_damaged_file_is_named(model, tmp_path, damage, expected, reader)


def test_special_tokens_that_no_file_names_are_those_of_the_configuration(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer_config.json"))
    tokenizer = open_tokenizer(tmp_path / "model", open_config(tmp_path / "model"))
    assert (tokenizer.pad_token, tokenizer.mask_token_id) == ("[PAD]", 4)
    tune(tmp_path / "model", tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_model_folder_is_said_to_be_none(tmp_path: Path, reader: str) -> None:
    with pytest.raises(UserError, match=r"is no model folder: it does not exist|is no folder"):
        READERS[reader](tmp_path / "nowhere", tmp_path)


def test_a_file_is_no_model_folder(model: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is no model folder: it is a file"):
        narrowbert.encode(model / "config.json", ["the cat"])


def test_a_run_and_a_folder_of_results_are_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"it is a run, of which narrowbert export .* makes one"):
        narrowbert.encode(tmp_path, ["the cat"])
    (tmp_path / "config.json").write_text('{"task": "classification"}')
    (tmp_path / "seed-1" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"names no model_type: it is no model's \(give .*seed-1/model\)"):
        narrowbert.encode(tmp_path, ["the cat"])


def test_a_bert_that_lacks_layers_is_not_filled_up_at_random(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=16,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path)
    for auto_class in ("AutoModel", "AutoModelForSequenceClassification"):
        open_config(tmp_path, also=["bert"])
        open_model(tmp_path, auto_class)  # head and pooler are new, as they are in every fine-tuning
    tensors(lambda state: state.pop(QUERY))(tmp_path)
    for auto_class in ("AutoModel", "AutoModelForSequenceClassification"):
        with pytest.raises(UserError, match=rf"lack 1 tensors of a bert: .*{QUERY.removeprefix('bert.')}"):
            open_model(tmp_path, auto_class)


def test_a_model_that_was_tuned_on_other_labels_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tuned", NarrowBertForSequenceClassification, id2label={0: "a", 1: "b"})
    with pytest.raises(UserError, match="tuned on other labels, give the model that it was tuned from"):
        finetune(tuning(folder, tmp_path / "work", labels="xyz"), say=lambda _: None)


@pytest.mark.slow
def test_the_command_prints_one_line(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    cut("model.safetensors")(tmp_path / "model")
    for argv in (["encode", "--model", "model"], ["onnx", "model"]):
        assert "model.safetensors is damaged or cut short" in user_error("pipeline", *argv, cwd=tmp_path)
    assert "nowhere is no model folder: it does not exist" in user_error("pipeline", "onnx", "nowhere", cwd=tmp_path)


@pytest.mark.parametrize("largest", [20_000, 80_000])  # the code that goes with it is smaller than the weights
def test_an_export_that_cannot_be_written_leaves_nothing(model: Path, tmp_path: Path, largest: int) -> None:
    with full_disk(largest), pytest.raises(UserError, match=r"cannot write the export .*: File too large"):
        convert(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- permissions ----------------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The permissions of a new file, by an umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_every_file_follows_the_umask(model: Path, tmp_path: Path, mode: int) -> None:
    (tmp_path / "new").write_text("")
    convert(model, tmp_path)
    tune(model, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"model.safetensors", "results.json", "tokenizer.json"} <= {path.name for path in files}
    assert {
        str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in files if path.stat().st_mode & 0o777 != mode
    } == {}

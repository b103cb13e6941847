"""sentence-transformers: the pooling of the export, and of a user who wants another one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer, losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoTokenizer, TrainingArguments

import narrowbert
from pipeline.export import NarrowBertForMaskedLM, NarrowBertForSequenceClassification
from pipeline.export.folder import pooling_of, write_pooling
from pipeline.initialisation.pretrained import export_pretrained
from tests.clients.layouts import LAYOUTS, each_layout
from tests.marks import long
from tests.tiny_exports import HIDDEN, MODERN, write_folder

TEXTS = ["the cat sat on the mat.", "a dog", "", "the cats ran on a road. the dog sat"]


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A folder as ``narrowbert export --pooling`` leaves it."""
    written: dict[tuple[str, str], Path] = {}

    def write(kind: str, pooling: str) -> Path:
        if (kind, pooling) not in written:
            layout, options = LAYOUTS[kind]
            folder = write_folder(tmp_path_factory.mktemp(kind) / pooling, NarrowBertForMaskedLM, layout, **options)
            write_pooling(folder, NarrowBertForMaskedLM.from_pretrained(folder).config, pooling)
            written[kind, pooling] = folder
        return written[kind, pooling]

    return write


def expected(folder: Path, pooling: str) -> np.ndarray:
    """Text by text, so without padding."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    return torch.stack([state[0] if pooling == "cls" else state.mean(0) for state in states]).numpy()


def assert_same(found: Any, wanted: np.ndarray) -> None:
    assert np.allclose(found, wanted, atol=1e-5)


@each_layout
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeddings_are_pooled_as_the_export_says(
    embedders: Callable[[str, str], Path], kind: str, pooling: str
) -> None:
    folder = embedders(kind, pooling)
    model = SentenceTransformer(str(folder), device="cpu")
    rows = []
    narrow = model[0].model.encoder_narrow
    narrow.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:2].numel()))
    assert_same(model.encode(TEXTS), expected(folder, pooling))
    assert (rows == [len(TEXTS)]) == (pooling == "cls")  # nothing else is computed
    assert model.get_embedding_dimension() == HIDDEN
    assert_same(model.encode(TEXTS), narrowbert.encode(folder, TEXTS))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("chosen", ["cls", "mean"])
def test_a_pooling_that_a_user_puts_on_an_export_is_right(
    embedders: Callable[[str, str], Path], pooling: str, chosen: Any
) -> None:
    folder = embedders("sparse_queries", pooling)
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(HIDDEN, chosen)], device="cpu")
    assert_same(model.encode(TEXTS), expected(folder, chosen))


@pytest.mark.parametrize("chosen", ["cls", "mean", "max"])
def test_a_pooling_after_an_embedding_of_cls_alone_is_an_error(
    embedders: Callable[[str, str], Path], chosen: Any
) -> None:
    model = SentenceTransformer(str(embedders("sparse_queries", "cls")), device="cpu")
    assert len(model) == 1
    model.append(Pooling(HIDDEN, chosen))
    with pytest.raises(KeyError, match="token_embeddings"):
        model.encode(TEXTS)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_model_that_is_saved_again_is_the_same(
    embedders: Callable[[str, str], Path], tmp_path: Path, pooling: str
) -> None:
    folder = embedders("shared_keys", pooling)
    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert_same(again.encode(TEXTS), expected(folder, pooling))
    assert pooling_of(tmp_path / "again") == pooling
    assert_same(narrowbert.encode(tmp_path / "again", TEXTS), expected(folder, pooling))


def test_an_export_of_an_earlier_version_is_pooled_as_it_says(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", NarrowBertForMaskedLM, "1sf:1sf", default_positions="cls")
    config = NarrowBertForMaskedLM.from_pretrained(folder).config
    write_pooling(folder, config, "mean")
    modes = folder / "1_Pooling/config.json"
    modes.write_text(modes.read_text().replace("true", "True").replace("false", "true").replace("True", "false"))
    assert pooling_of(folder) == "cls"
    assert not np.allclose(expected(folder, "cls"), expected(folder, "mean"), atol=1e-2)
    assert_same(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), expected(folder, "cls"))
    assert_same(narrowbert.encode(folder, TEXTS), expected(folder, "cls"))
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(HIDDEN, "mean")], device="cpu")
    assert_same(model.encode(TEXTS), expected(folder, "mean"))


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {"bert": ("3sf", {}), "modernbert": ("2sfwf", MODERN)}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("model_type", PLAIN)
def test_an_encoder_in_a_plain_form_gives_the_same_embeddings(tmp_path: Path, model_type: str, pooling: str) -> None:
    layout, options = PLAIN[model_type]
    ours = write_folder(tmp_path / "ours", NarrowBertForMaskedLM, layout, **options)
    arguments: dict[str, Any] = {"layout": None, "tokenizer_path": None, "allow": [], "pooling": pooling}
    export_pretrained(ours, tmp_path / "plain", model_type=model_type, **arguments)
    model = SentenceTransformer(str(tmp_path / "plain"), device="cpu", trust_remote_code=False)
    assert type(model[0].model).__module__.startswith(f"transformers.models.{model_type}.")
    assert_same(model.encode(TEXTS), expected(ours, pooling))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", long("mean")])
def test_its_trainer_trains_an_export(embedders: Callable[[str, str], Path], tmp_path: Path, pooling: str) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainingArguments

    model = SentenceTransformer(str(embedders("sparse_queries", pooling)), device="cpu")
    rows = [("the cat sat", "a cat sat", 1.0), ("the dog ran", "a mat", 0.0)] * 8

    def gap(model: SentenceTransformer) -> float:
        first, second = (model.encode([row[n] for row in rows[:2]], normalize_embeddings=True) for n in (0, 1))
        near, far = (first * second).sum(1)
        return float(near - far)

    columns = dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*rows, strict=True)), strict=True))
    options: TrainingArguments = SentenceTransformerTrainingArguments(
        str(tmp_path), num_train_epochs=8, learning_rate=5e-3, report_to="none", save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=options, train_dataset=Dataset.from_dict(columns), loss=losses.CosineSimilarityLoss(model)
    )
    before = gap(model)
    trainer.train()
    assert gap(model) > before + 0.3
    model.save(str(tmp_path / "tuned"))
    again = SentenceTransformer(str(tmp_path / "tuned"), device="cpu")
    assert_same(again.encode(TEXTS), model.encode(TEXTS))


@each_layout
def test_a_cross_encoder_gives_the_classifiers_logits(exported: Callable[..., Path], kind: str) -> None:
    folder = exported(kind, NarrowBertForSequenceClassification, num_labels=1)
    pairs = [("the cat sat", "a dog"), ("a mat", "the road ran on the mat.")]
    found = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity()).predict(pairs)
    model = NarrowBertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        wanted = [model(**tokenizer(*pair, return_tensors="pt")).logits[0, 0].item() for pair in pairs]
    assert_same(found, np.array(wanted))


def test_the_onnx_backend_gives_the_same_embeddings(embedders: Callable[[str, str], Path]) -> None:
    pytest.importorskip(
        "optimum.onnxruntime",
        reason="sentence-transformers' onnx backend is in optimum-onnx, whose newest (0.1) takes no transformers 5",
    )
    folder = embedders("sparse_queries", "mean")
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu")
    assert_same(model.encode(TEXTS), expected(folder, "mean"))

"""``narrowbert resize``: larger, smaller, blended, or refused with nothing written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertForMaskedLM
from pipeline.initialisation.growth.grow import Growth
from pipeline.initialisation.growth.resize import resize
from tests.processes import user_error
from tests.tiny_exports import HEADS, HIDDEN, INNER, batch, write_folder

LARGE = {"hidden_size": 2 * HIDDEN, "num_attention_heads": 2 * HEADS, "ffn_hidden_size": 2 * INNER}
SMALL = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "ffn_hidden_size": INNER}
FPI = Growth(method="fpi", depth="stack", seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transformers; to be read only."""
    return write_folder(tmp_path_factory.mktemp("resize") / "small", NarrowBertForMaskedLM, "1sf:2sf")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_model_grows_and_comes_back(folder: Path, tmp_path: Path) -> None:
    resize(str(folder), tmp_path / "large", LARGE, FPI)
    ids, mask = batch(12, 7)
    logits = []
    for path in (folder, tmp_path / "large"):
        model = AutoModelForMaskedLM.from_pretrained(path).eval()
        with torch.no_grad():
            logits.append(model(ids, attention_mask=mask, narrow_positions=torch.tensor([[0, 3], [1, 6]])).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    resize(str(tmp_path / "large"), tmp_path / "back", SMALL, FPI)
    there, back = weights(folder), weights(tmp_path / "back")
    assert there.keys() == back.keys()
    for name, tensor in there.items():
        torch.testing.assert_close(back[name], tensor, msg=name)


def test_a_grown_model_is_blended_with_what_was_before(folder: Path, tmp_path: Path) -> None:
    resize(str(folder), tmp_path / "grown", LARGE, FPI)
    resize(str(folder), tmp_path / "before", LARGE, Growth(method="aki", depth="stack", seed=2))
    said = resize(str(folder), tmp_path / "blend", LARGE, FPI, str(tmp_path / "before"), 0.25)
    assert f"blended with: {tmp_path / 'before'}, of which 0.75" in said
    grown, before, blend = (weights(tmp_path / name) for name in ("grown", "before", "blend"))
    for name, tensor in blend.items():
        torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * grown[name], rtol=1e-5, atol=1e-6)
    card = (tmp_path / "blend/README.md").read_text()
    assert f"| made of | {folder}, layout sf:2sf |" in card


@pytest.mark.parametrize(
    ("sizes", "options", "expected"),
    [
        ({**LARGE, "ffn_hidden_size": 32}, {}, "which is larger, while"),
        ({"layout": "2sf:1sf"}, {}, "right of ':' 2 layers 'sf' there, 1 here"),
        ({"hidden_size": 33}, {}, "no model has these sizes"),
        ({"layout": "2sf:xsf"}, {}, "no model has these sizes: layout '2sf:xsf'"),
        ({"ffn_hidden_size": INNER}, {}, "it has the same sizes"),
        (LARGE, {"blend": "itself", "alpha": 0.5}, "to blend with: hidden_size 32 there, 64 here"),
        (LARGE, {"blend": "itself", "alpha": 1.5}, "--alpha is 1.5"),
        (LARGE, {"blend": "nothing", "alpha": 0.5}, "is no folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_resized_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, sizes: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    options = {key: str(folder) if value == "itself" else value for key, value in options.items()}
    with pytest.raises(UserError) as caught:
        resize(str(folder), tmp_path / "new", sizes, FPI, **options)
    assert expected in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    argv = ["pipeline", "resize", str(folder), "--output", str(tmp_path / "new")]
    assert "no size is given" in user_error(*argv)
    assert "--blend and --alpha go together" in user_error(*argv, "--model.hidden_size", "64", "--alpha", "0.5")
    assert "sizes are positive" in user_error(*argv, "--model.hidden_size", "0")
    assert not (tmp_path / "new").exists()

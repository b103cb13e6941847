"""The reference agrees with the code: pages that are generated, and the page of formats that is written by hand."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.contract import shard_format, shard_index
from docs.generate_reference import CONFIGURATIONS, PAGES, help_of, options_of
from pipeline.checkpoints.format import KINDS, TrainerState
from pipeline.runs.metric_names import METRICS
from tests.docs.pages import ROOT, text_of

FORMATS = "docs/reference/formats.md"


def test_every_configuration_key_is_explained_by_a_sentence() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", PAGES["reference/configuration.md"](), re.MULTILINE)
    leaves = sum(len(list(_leaves(cls))) for *_, cls in CONFIGURATIONS)
    assert len(rows) == leaves
    assert [key for key, meaning in rows if not meaning.strip()] == []


def _leaves(cls: type) -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        is_section = isinstance(factory, type) and dataclasses.is_dataclass(factory)
        found += _leaves(factory) if is_section else [field.name]
    return found


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("data_prep", "vocab"),
        ("data_prep", "shards"),
        ("pipeline", "train"),
        ("pipeline", "plan"),
        ("pipeline", "finetune"),
        ("cluster", "train"),
        ("cluster", "prep"),
    ],
)
def test_help_explains_every_key_also_inherited_ones(program: str, command: str) -> None:
    options = options_of(help_of(program, command))
    assert len(options) > 20
    assert [option for option, meaning in options.items() if not meaning or meaning.startswith("(")] == []


def test_every_promised_name_is_on_the_page_of_the_python_api() -> None:
    tree = ast.parse((ROOT / "narrowbert.py").read_text())
    promised = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert sorted(
        re.findall(r"^::: narrowbert\.(\w+)$", text_of("docs/reference/python-api.md"), re.MULTILINE)
    ) == sorted(promised)


def test_every_metric_is_on_its_page() -> None:
    page = PAGES["reference/metrics.md"]()
    assert [name for name in METRICS if f"| `{name}` |" not in page] == []


def test_every_preset_is_on_its_page() -> None:
    page = PAGES["reference/presets.md"]()
    assert [p.name for p in (ROOT / "configs").rglob("*.yaml") if str(p.relative_to(ROOT)) not in page] == []


def test_the_fields_of_chunk_and_index_are_those_of_the_code() -> None:
    sizes = {"K": 3, "P": 5, "S": 32}
    geometry = shard_format.Geometry(seq_length=32, masked_per_row=5, num_variants=3, vocab_size=160)
    rows, boundaries = 7, 11
    letters = {value: letter for letter, value in sizes.items()} | {rows: "R", rows + 1: "R + 1", boundaries: "ragged"}
    expected = {}
    for name, (dtype, shape) in geometry.fields(rows, boundaries).items():
        written = "ragged" if shape == (boundaries,) else f"[{', '.join(letters[n] for n in shape)}]"
        is_token = name in ("input_ids", "replacement_ids")
        expected[name] = (written, "token" if is_token else f"u{dtype.itemsize * 8}")
    fields, index = text_of(FORMATS).split("## Checkpoint")[0].split("The index of a split")
    assert described(fields) == expected
    columns = {}
    for name, (dtype, behind) in shard_index.COLUMNS.items():
        count = "n + 1" if name == "shard_chunks" else "n" if name.startswith("shard_") else "c"
        columns[name] = (f"[{', '.join([count, *map(str, behind)])}]", f"u{dtype.itemsize * 8}")
    assert described(index) == columns


def described(section: str) -> dict[str, tuple[str, str]]:
    """Name -> shape and type, as a table of the page has them."""
    return {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", section, re.MULTILINE)}


def test_the_files_of_a_shard_folder_are_named() -> None:
    section = text_of(FORMATS).split("## Checkpoint")[0]
    for name in (shard_format.MANIFEST, shard_format.TOKENIZER, shard_format.CHUNK_EXTENSION):
        assert name in section
    for name in (*map(shard_format.index_name, shard_format.SPLITS), *shard_format.PINNED_FILES.values()):
        assert name in section


def test_a_checkpoint_has_the_files_and_keys_of_the_page() -> None:
    section = text_of(FORMATS).split("## Checkpoint")[1].split("## Run directory")[0]
    assert [kind for kind in KINDS if f"| `{kind}-*` |" not in section] == []
    keys = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert keys == [field.name for field in dataclasses.fields(TrainerState)]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "class LabelSmoothing" in re.sub(r"<[^>]+>", "", (tmp_path / "site/how-to/own-loss/index.html").read_text())
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], f"{page} loads from another site"

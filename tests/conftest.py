"""What every test shares: a small corpus, its shards, and quiet, offline, single-threaded processes."""

import json
import os
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Before torch is imported anywhere: one thread a process, nothing from a hub, no GPU but for tests/gpu.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("NARROWBERT_TEST_GPU") != "cuda":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.pop("MLFLOW_TRACKING_URI", None)

from data_prep.contract.shard_writing import write_manifest, write_shard
from data_prep.contract.shards import open_shards
from pipeline.data.mixture import Mixture, open_mixture
from tests.processes import run_command

# No example is wrong for being slow: machines are loaded, and coverage is measured.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What takes longest comes first, so that nothing long is left for one worker at the end.
FOLDERS = ("cluster", "distributed", "faults", "tracking", "end_to_end", "pipeline", "data_prep")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # xdist's own hook reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """With several workers a file's tests share one, for its fixtures' sake; all of Slurm's share one Slurm."""
    places = {name: place for place, name in enumerate(FOLDERS)}
    items.sort(key=lambda item: places.get(_place(item).parts[0], len(FOLDERS)))
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
        place = _place(item)
        item.add_marker(pytest.mark.xdist_group("cluster" if place.parts[0] == "cluster" else str(place)))
    yield
    is_worker_of_groups = getattr(config.option, "loadgroup", False)
    if is_worker_of_groups and not all("@" in item.nodeid for item in items):
        raise pytest.UsageError(
            "this pytest-xdist does not group the tests of this pytest: two Slurms would run at a time"
        )


def _place(item: pytest.Item) -> Path:
    return item.path.relative_to(Path(__file__).parent)


TEXT = (
    "the model reads a row of tokens and predicts every masked word from what stands around it while "
    "narrow layers compute only few positions so training takes less time on small machines than before"
)


def swap_ids_of_two_tokens(tokenizer_json: Path) -> None:
    """Make another tokenizer of one, which differs in nothing else."""
    content = json.loads(tokenizer_json.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    tokenizer_json.write_text(json.dumps(content))


def write_corpus(path: Path, num_documents: int = 120, first: int = 0) -> None:
    """Documents of pseudo-random sentences over a small vocabulary, as .jsonl."""
    lines, vocabulary = [], TEXT.split()
    for document in range(first, first + num_documents):
        words = [vocabulary[(document * 7 + 3 * i * i + i) % len(vocabulary)] for i in range(60 + document % 50)]
        lines.append('{"text": "' + " ".join(words) + '."}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder made by the real commands: rows of 32 tokens, 5 masked, 3 variants."""
    folder = tmp_path_factory.mktemp("shards")
    write_corpus(folder / "corpus.jsonl")
    options = [
        "--corpus.paths", f"[{folder / 'corpus.jsonl'}]", "--output", str(folder / "shards"),
        "--vocabulary.size", "160", "--vocabulary.alphabet_size", "40", "--seq_length", "32",
        "--mask.variants", "3", "--validation_fraction", "0.15", "--chunk_rows", "32",
        "--rows_per_shard", "128", "--num_workers", "1",
    ]  # fmt: skip
    run_command("data_prep", "vocab", *options)
    run_command("data_prep", "shards", *options)
    return folder / "shards"


@pytest.fixture(scope="session")
def second_shard_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer rows of other text with the same tokenizer and 2 variants, to be mixed with the first."""
    folder = tmp_path_factory.mktemp("second")
    write_corpus(folder / "corpus.jsonl", num_documents=40, first=1000)
    run_command(
        "data_prep", "shards", "--corpus.paths", str(folder / "corpus.jsonl"), "--output", str(folder / "more"),
        "--tokenizer", str(shard_folder / "tokenizer.json"), "--seq_length", "32", "--mask.variants", "2",
        "--validation_fraction", "0.2", "--chunk_rows", "16", "--num_workers", "1",
    )  # fmt: skip
    return folder / "more"


@pytest.fixture(scope="session")
def long_shard_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 tokens of the first folder's text, with its tokenizer."""
    folder = tmp_path_factory.mktemp("long")
    run_command(
        "data_prep", "shards", "--corpus.paths", str(shard_folder.parent / "corpus.jsonl"),
        "--output", str(folder / "shards"), "--tokenizer", str(shard_folder / "tokenizer.json"), "--seq_length", "64",
        "--mask.variants", "2", "--validation_fraction", "0.15", "--chunk_rows", "16", "--num_workers", "1",
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="session")
def ragged_shard_folder(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, but each with another number of masks (1 to 5), as if many rows were short."""
    folder = tmp_path_factory.mktemp("ragged")
    shutil.copy(shard_folder / "tokenizer.json", folder)
    original = open_shards(shard_folder)
    entries = {}
    for name in original.indexes:
        split = original.split(name)
        chunks = [_with_fewer_masks(split.chunk(index)) for index in range(len(split.chunk_rows))]
        entries[name] = [write_shard(folder, name, 0, chunks)]
    content = {k: v for k, v in original.manifest.items() if k != "root_hash"}
    write_manifest(folder, content, entries)
    return folder


def _with_fewer_masks(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    changed = {name: array.copy() for name, array in arrays.items()}
    changed["num_masked"] = 1 + (arrays["sequence_ids"][:, None] * 7 % arrays["num_masked"]).astype(np.uint16)
    unused = np.arange(arrays["masked_positions"].shape[2]) >= changed["num_masked"][:, :, None]
    changed["masked_positions"][unused] = 0
    changed["replacement_ids"][unused] = arrays["input_ids"][0, 0]
    return changed


@pytest.fixture(scope="session")
def shards(shard_folder: Path) -> Mixture:
    """The shard folder, opened."""
    return open_mixture(str(shard_folder), None)


@pytest.fixture(scope="session")
def mixture(shard_folder: Path, second_shard_folder: Path) -> Mixture:
    """Three rows of the first folder for one of the second."""
    return open_mixture([str(shard_folder), str(second_shard_folder)], [3, 1])

"""The commands and Python blocks of the pages run as they stand, on tiny artifacts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertForPreTraining

from docs.generate_reference import PROGRAMS, command_names, help_of
from tests.conftest import write_corpus
from tests.docs.pages import OUTSIDE, ROOT, blocks_of, text_of, written_pages
from tests.marks import long_unless
from tests.processes import TIMEOUT_S

pytestmark = pytest.mark.slow

# Sizes of the presets, for a folder in which the commands of the pages run as they stand.
TINY: dict[str, dict[str, Any]] = {
    "pretrain": {
        "model.hidden_size": 32, "model.num_attention_heads": 4, "model.ffn_hidden_size": 64,
        "training.train_steps": 4, "training.global_batch_size": 16, "training.micro_batch_size": 4,
        "training.eval_interval": 4, "training.eval_rows": 16, "training.save_interval": 2, "training.log_interval": 1,
        "optimizer.lr_warmup_steps": 1, "tracking.enabled": False,
    },
    "prep": {
        "vocabulary.size": 160, "seq_length": 32, "chunk_rows": 32, "rows_per_shard": 128, "mask.variants": 3,
        "validation_fraction": 0.15, "num_workers": 1, "corpus.builtin_max_bytes": 100_000,
    },
    "finetune": {
        "training.epochs": 1, "training.seeds": [1], "training.batch_size": 8, "training.max_length": 16,
        "tracking.enabled": False,
    },
}  # fmt: skip
HALF = {"model.hidden_size": 16, "model.num_attention_heads": 2, "model.ffn_hidden_size": 32}
"""Of the preset that another one grows out of."""
# What is replaced in a block before it runs.
SUBSTITUTIONS = {
    "--processes 8": "--processes 2",
    "--training.micro_batch_size 27": "--training.micro_batch_size 27 --training.global_batch_size 1728",
    "step-00001000": "step-00000004",
    "--seq_length 2048": "--seq_length 144",
    ", https://host/news.jsonl.gz": "",
    "'[2, 1, 0.5]'": "'[2, 1]'",
    "'[[0, 24], [60, 48]]'": "'[[0, 8], [60, 16]]'",
    "--training.time_budget_hours 8 --training.train_steps 1000000": "--training.time_budget_hours 1e-3 "
    "--training.train_steps 100",
    "--training.train_steps 35000": "--training.train_steps 4",
    "--training.train_steps 3500": "--training.train_steps 4",
    "--model.hidden_size 384 --model.num_attention_heads 6": "--model.hidden_size 16 --model.num_attention_heads 2",
    "--model.ffn_hidden_size 1024": "--model.ffn_hidden_size 32",
    "--model.hidden_size 768 --model.num_attention_heads 12": "--model.hidden_size 32 --model.num_attention_heads 4",
    "--model.ffn_hidden_size 2048": "--model.ffn_hidden_size 64",
    "sat on the mat": "reads a row of tokens",
}
# What does not run in a test, and why. Commands of the project among them must still parse.
NOT_RUN = {
    r"make ": "installs, or runs the demo that has a step of its own",
    r"pip install|python3 -m venv": "installs",
    r"export ": "sets a variable for what follows",
    r"torchrun|narrowbert-submit": "needs a cluster",
    r"mlflow ": "starts a server",
}
FOREIGN_OPTIONS = {
    "--kill-on-bad-exit",
    "--distribution",
    "--container-image",
    "--test-only",
    "--allowed-hosts",
    "--app-name",
    "--artifacts-destination",
}
"""Of Slurm and other programs that the prose names."""
# What a page finds in its folder, besides configs/ and examples/: text, or what an earlier page has made.
NEEDS = {
    "README.md": ["my-text", "texts.txt", "train.jsonl", "validation.jsonl"],
    "docs/tutorials/own-corpus.md": ["my-text"],
    "docs/tutorials/one-node-to-many.md": [],
    "docs/tutorials/fine-tune-and-serve.md": ["my-model", "texts.txt", "train.jsonl", "validation.jsonl"],
    "docs/how-to/prepare-text.md": ["shards", "wiki", "books", "my-prep.yaml"],
    "docs/how-to/several-corpora.md": ["wiki", "books"],
    "docs/how-to/read-shards-elsewhere.md": ["shards"],
    "docs/how-to/own-loss.md": ["shards"],
    "docs/how-to/start-from-a-bert.md": ["shards", "bert-base-uncased"],
    "docs/how-to/grow-models.md": ["shards"],
    "docs/how-to/precision.md": ["shards"],
    "docs/how-to/preemption-and-failures.md": ["shards"],
    "docs/how-to/optimizers.md": ["shards"],
    "docs/how-to/schedules.md": ["shards"],
    "docs/how-to/train-in-phases.md": ["shards", "my-text"],
    "docs/how-to/compare-runs.md": ["shards", "runs", "mlflow.db"],
    "docs/how-to/tracking-server.md": ["shards", "runs", "mlflow.db"],
    "docs/how-to/serve-with-onnx.md": ["my-model", "texts.txt", "mlflow.db"],
    "docs/how-to/transformers.md": ["my-model", "my-classifier", "runs"],
    "docs/how-to/fine-tune.md": ["my-model", "texts.txt", "train.jsonl", "validation.jsonl"],
    "docs/how-to/embeddings.md": ["my-model", "runs", "texts.txt"],
    "docs/reference/formats.md": ["shards", "runs"],
}
# What somebody runs who has not decided yet.
FIRST_PAGES = ("README.md", "docs/tutorials/own-corpus.md", "docs/tutorials/fine-tune-and-serve.md")
RUN_PAGES = [page for page in written_pages() if page not in OUTSIDE or page == "README.md"]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny presets, and everything that one page makes and another reads."""
    folder = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for kind, sizes in TINY.items():
        for path in (folder / "configs" / kind).glob("*.yaml"):
            own = sizes | (HALF if path.stem == "grown-base-small" else {})
            path.write_text(yaml.safe_dump(_with_sizes(yaml.safe_load(path.read_text()), own)))
    _write_texts(folder)
    prep = "--config configs/prep/base.yaml --corpus.paths '[my-text/*.jsonl]' --output shards/mine"
    train = "narrowbert train --config configs/pretrain/quickstart.yaml --data.path shards/mine --tracking.enabled true"
    for command in (
        f"narrowbert-prep vocab {prep}",
        f"narrowbert-prep shards {prep}",
        "cp -r shards/mine shards/quickstart",
        f"{train} --run_dir runs/mine --model.layout sf:2sf",
        f"{train} --run_dir runs/control --model.layout 3sf".replace("quickstart", "bert-base-control"),
        "cp -r runs/mine runs/narrow",
        "narrowbert export runs/mine --output my-model --register my-encoder",
        "narrowbert export runs/control --output my-control",
        "narrowbert finetune --config configs/finetune/classification.yaml --model my-control --output tuned "
        "--data.train train.jsonl --data.validation validation.jsonl",
        "cp -r tuned/seed-1/model my-classifier",
    ):
        _run(["bash", "-c", command], folder)
    _write_bert(folder / "bert-base-uncased", folder / "shards/mine/tokenizer.json")
    return folder


def _with_sizes(preset: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    for key, value in sizes.items():
        *sections, name = key.split(".")
        place = preset
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return preset


def _write_texts(folder: Path) -> None:
    for name in ("my-text", "wiki", "books"):
        (folder / name).mkdir()
        write_corpus(folder / name / "a.jsonl", first=len(name) * 1000)
        subprocess.run(["gzip", "-k", folder / name / "a.jsonl"], check=True)
    texts = [json.loads(line)["text"] for line in (folder / "wiki/a.jsonl").read_text().splitlines()]
    from pyarrow import Table
    from pyarrow.parquet import write_table
    from zstandard import compress

    write_table(Table.from_pydict({"text": texts}), folder / "wiki/a.parquet")
    (folder / "books/a.txt.zst").write_bytes(compress("\n".join(texts).encode()))
    (folder / "texts.txt").write_text("\n".join(texts[:24]) + "\n")
    for split in ("train", "validation"):
        examples = [{"text": text, "label": ["animals", "cars"][n % 2]} for n, text in enumerate(texts[:24])]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    preset = yaml.safe_load((folder / "configs/prep/base.yaml").read_text())
    preset |= {
        "output": "shards/by-hand",
        "tokenizer": "shards/mine.tokenizer.json",
        "corpus": {"paths": ["wiki/*.jsonl"]},
    }
    (folder / "my-prep.yaml").write_text(yaml.safe_dump(preset))


def _write_bert(folder: Path, tokenizer: Path) -> None:
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64
    )
    BertForPreTraining(config).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


def _run(argv: list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        argv, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ended.returncode == 0, f"{argv[-1]}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def _commands(text: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments removed."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)# .*$", "", line).strip() for line in lines) if line]


def _is_run(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in NOT_RUN)


def _shell_commands(page: str) -> list[str]:
    return [command for block in blocks_of(page) if block.language == "sh" for command in _commands(block.text)]


@pytest.mark.parametrize("page", long_unless(lambda page: page in FIRST_PAGES, [(page,) for page in RUN_PAGES]))
def test_blocks_of_the_page_run_in_their_order(page: str, artifacts: Path, tmp_path: Path) -> None:
    blocks = [b for b in blocks_of(page) if b.language in ("sh", "python") and not b.text.startswith("--8<--")]
    steps = [
        step
        for block in blocks
        for step in (
            [["bash", "-c", f"set -euo pipefail\n{c}"] for c in _commands(_substituted(block.text)) if _is_run(c)]
            if block.language == "sh"
            else [[sys.executable, "-P", "-c", _substituted(block.text)]]
        )
    ]
    if not steps:
        return
    for name in ("configs", "examples", *NEEDS.get(page, [])):
        copy = shutil.copytree if (artifacts / name).is_dir() else shutil.copy
        copy(artifacts / name, tmp_path / name)
    for step in steps:
        _run(step, tmp_path)


def _substituted(text: str) -> str:
    for old, new in SUBSTITUTIONS.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("page", RUN_PAGES)
def test_shell_blocks_name_their_language(page: str) -> None:
    assert [block.text for block in blocks_of(page) if block.language in ("", "bash", "console", "shell")] == []


@pytest.mark.parametrize("page", written_pages())
def test_every_command_of_the_page_has_the_options_it_is_given(page: str) -> None:
    for command in _shell_commands(page):
        words = shlex.split(command)
        at = next((n for n, word in enumerate(words) if word in PROGRAMS), None)
        if at is None:
            continue
        program, name, *rest = words[at:]
        known = _options(program, name)
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert given <= known, f"{command}: {program} {name} does not know {given - known}"


@cache
def _options(program: str, command: str) -> set[str]:
    return {"--debug", *re.findall(r"--[\w.]+", help_of(PROGRAMS[program], command))}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", *RUN_PAGES])
def test_every_option_that_the_prose_names_exists(page: str) -> None:
    known = {"--help", "--version", "--print_config", "--config"}
    for program, module in PROGRAMS.items():
        for command in command_names(help_of(module)):
            known |= _options(program, command)
    spans = re.findall(r"`([^`\n]+)`", text_of(page))
    named = {option for span in spans for option in re.findall(r"(?:^|\s)(--[a-z_.-]+)", span)}
    assert named - known - FOREIGN_OPTIONS == set()

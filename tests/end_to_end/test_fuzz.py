"""Command lines that somebody got wrong, at random: an exit code that is documented, one line, nothing half written."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import write_corpus
from tests.faults.runs import LONG
from tests.processes import TINY_RUN, run_command

EXAMPLES = 300 if LONG else 8
SECONDS = 240
# 1 is a bug; 85 and 86 are a run's that was asked to stop or hangs.
DOCUMENTED = (0, 2, 85, 86)

RUN = [
    *TINY_RUN, "--model.layout", "sf:sf", "--training.train_steps", "4", "--training.precision", "fp32",
    "--training.eval_rows", "8",
]  # fmt: skip
PREP = [
    "--corpus.paths", "[corpus.jsonl]", "--vocabulary.size", "160", "--vocabulary.alphabet_size", "40",
    "--seq_length", "32", "--validation_fraction", "0.15", "--num_workers", "1",
]  # fmt: skip
FINETUNE = [
    "--model", "model", "--task", "classification", "--data.train", "labelled.jsonl", "--data.validation",
    "labelled.jsonl", "--training.num_train_epochs", "1",
]  # fmt: skip

# Each works as it stands, in a folder made by ``workplace``. What it writes is in ``new``.
COMMANDS: dict[str, list[str]] = {
    "vocab": ["data_prep", "vocab", *PREP, "--output", "new"],
    "shards": ["data_prep", "shards", *PREP, "--tokenizer", "shards/tokenizer.json", "--output", "new"],
    "verify": ["data_prep", "verify", "shards"],
    "inspect": ["data_prep", "inspect", "shards", "--rows", "1"],
    "remask": ["data_prep", "remask", "shards", "--output", "new", "--mask.variants", "2"],
    "plan": ["pipeline", "plan", *RUN, "--data.path", "shards"],
    "train": ["pipeline", "train", *RUN, "--data.path", "shards", "--run_dir", "new"],
    "resume": ["pipeline", "train", *RUN, "--data.path", "shards", "--run_dir", "run"],
    "phase": [
        "pipeline",
        "train",
        *RUN,
        "--data.path",
        "shards",
        "--run_dir",
        "new",
        "--init.from_run",
        "run@4",
        "--training.mask_rate",
        "[[0, 0.15], [2, 0.05]]",
    ],
    "average": ["pipeline", "average", "run", "--last", "1", "--output", "new"],
    "evaluate": ["pipeline", "evaluate", "run"],
    "report": ["pipeline", "report", "run", "--output", "new"],
    "export": ["pipeline", "export", "run", "--output", "new"],
    "convert": ["pipeline", "convert", "model", "--output", "new"],
    "encode": ["pipeline", "encode", "--model", "model", "--pooling", "mean"],
    "finetune": ["pipeline", "finetune", *FINETUNE, "--output", "new"],
    "checkpoints": ["pipeline", "checkpoints", "run"],
    "submit": ["cluster", "train", *RUN, "--data.path", "shards", "--run_dir", "new", "--dry_run"],
}
WHOLE = ("average", "export", "convert", "finetune")
"""Commands that leave ``new`` whole or not at all."""

VALUES = [
    "", " ", "0", "-1", "1", "3", "0.5", "1e309", "nan", "[]", "{}", "null", "true", "~", "~nobody/x", "$NOT_SET/x",
    "/dev/null", "/not/there", "a: b", "[1, 2", "'", "é", "9" * 30, "s3://", "http://127.0.0.1:9/x", "run", "shards",
    "model", "new", ".", "corpus.jsonl", "--help", "0x10", "1_000", "\t", "2sf:2sf", "fp16",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path) -> Path:
    """What the commands read: a corpus, shards, a run, an export, labelled examples."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_corpus(folder / "corpus.jsonl")
    shutil.copytree(shard_folder, folder / "shards")
    run_command("pipeline", "train", *RUN, "--data.path", "shards", "--run_dir", "run", cwd=folder)
    run_command("pipeline", "export", "run", "--output", "model", cwd=folder)
    lines = [f'{{"text": "the model reads row {n}", "label": "{"ab"[n % 2]}"}}\n' for n in range(12)]
    (folder / "labelled.jsonl").write_text("".join(lines))
    return folder


def inputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "is empty": lambda path: path.write_bytes(b""),
    "is cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "is garbage": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "is gone": lambda path: path.unlink(),
    "is a folder": lambda path: (path.unlink(), path.mkdir()),
    "is a list": lambda path: path.write_text("[1, 2]"),
}


@st.composite
def changed_commands(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A command, and its arguments after one or two mistakes."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    package, command, *argv = COMMANDS[name]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, max(len(argv) - 1, 0)))
        what = draw(st.sampled_from(["another value", "left out", "twice", "an unknown one", "one more"]))
        value = draw(st.sampled_from(VALUES))
        if what == "another value" and argv:
            argv[place] = value
        elif what == "left out" and argv:
            del argv[place]
        elif what == "twice" and argv:
            argv.insert(place, argv[place])
        elif what == "an unknown one":
            argv += ["--no_such_option", value]
        else:
            argv.append(value)
    return name, [package, command, *argv]


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600 if LONG else 900)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not LONG, print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink one would take an hour
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(chosen=changed_commands(), data=st.data())
def test_no_mistake_is_a_traceback(workplace: Path, chosen: tuple[str, list[str]], data: st.DataObject) -> None:
    name, argv = chosen
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "work"
        shutil.copytree(workplace, folder)
        if data.draw(st.booleans(), label="a file is damaged"):
            path = data.draw(st.sampled_from(inputs(workplace)), label="which")
            DAMAGES[data.draw(st.sampled_from(sorted(DAMAGES)), label="how")](folder / path)
        started = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-P", "-m", *argv], cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "HOME": str(folder), "MLFLOW_TRACKING_URI": ""},
        )  # fmt: skip
        try:
            out, err = started.communicate("the model reads a row\n", timeout=SECONDS)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.communicate()
        said = f"{argv} ended with {started.returncode}\n{out[-2000:]}\n{err[-3000:]}"
        assert started.returncode in DOCUMENTED, said
        assert "Traceback" not in out + err, said
        if started.returncode == 2:
            errors = [line for line in err.splitlines() if ": error: " in line]
            assert len(errors) == 1, said
            if name in WHOLE and (folder / "new").exists():
                assert not any((folder / "new").iterdir()), said

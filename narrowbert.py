"""NarrowBERT as a library: the names that are promised, on one page.

``import narrowbert`` registers the model's classes with transformers, so that ``AutoModelForMaskedLM.from_pretrained``
loads an export without remote code. It imports torch and transformers, which takes some seconds. The functions return
values instead of printing them; ``train`` logs as the command does. A mistake raises ``UserError``, whose message is
one line: what, where, how to fix it.

Everything else of the packages ``data_prep`` and ``pipeline`` may change with any release.
"""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedModel

from data_prep.contract.command_line import UserError, read_config
from data_prep.contract.shards import ShardFolder, open_shards
from data_prep.verification.folder import Verification, verify
from pipeline.config import RunConfig
from pipeline.data.batches import Batch
from pipeline.data.mixture import Mixture
from pipeline.data.mixture import open_mixture as _open_mixture
from pipeline.data.plain_webdataset import as_webdataset
from pipeline.export import AUTO_CLASSES as _AUTO_CLASSES
from pipeline.export.folder import pooling_of as _pooling_of
from pipeline.export.model_folder import open_config as _open_config
from pipeline.export.model_folder import open_model as _open_model
from pipeline.finetune.config import FinetuneConfig, check_finetune
from pipeline.finetune.results import Result
from pipeline.inference.encode import POOLINGS, Answer, EncodeOptions, answer_texts
from pipeline.planning.plan import Plan, PlanOptions
from pipeline.planning.plan import plan as _plan
from pipeline.training.objective import ForwardPass, Objective, ObjectiveSums
from pipeline.training.validation import Evaluation

__all__ = [
    "Batch",
    "Evaluation",
    "ForwardPass",
    "Mixture",
    "Objective",
    "ObjectiveSums",
    "Plan",
    "Result",
    "RunConfig",
    "ShardFolder",
    "UserError",
    "Verification",
    "as_webdataset",
    "encode",
    "evaluate",
    "export",
    "finetune",
    "load_model",
    "open_mixture",
    "open_shards",
    "plan",
    "predict",
    "run_config",
    "train",
    "verify",
]

__version__ = importlib.metadata.version("narrowbert")

_Config = TypeVar("_Config")

_has_trained = False


def run_config(*files: str | Path, options: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run, as ``narrowbert train`` reads it.

    Args:
        files: YAML files; a later one wins.
        options: dotted key -> value, such as ``{"model.layout": "2sf:10sf"}``; they win over the files.

    Raises:
        UserError: a file that cannot be read, an unknown key, or a value of the wrong type.

    Example:
        >>> import narrowbert
        >>> config = narrowbert.run_config(options={"model.layout": "1sf:3sf", "training.precision": "fp32"})
        >>> config.model.layout
        '1sf:3sf'
    """
    return _read(RunConfig, files, options or {})


def plan(config: RunConfig, **options: float | None) -> Plan:
    """What a configuration costs, by arithmetic alone. Nothing is started.

    Args:
        config: of the run.
        options: ``processes``, ``nodes``, ``seq_length``, ``masked_per_row``, ``vocab_size``, ``tokens_per_second``
            and the others of ``narrowbert plan``. Sizes that are not given are read from the shards at
            ``config.data.path``.

    Returns:
        Parameters, FLOPs per row, the predicted speed-up and tokens. ``str()`` of it is the table of the command.

    Raises:
        UserError: the configuration does not fit together, or neither shards nor sizes are there.

    Example:
        >>> import narrowbert
        >>> config = narrowbert.run_config(options={"model.layout": "2sf:10sf", "training.micro_batch_size": 27})
        >>> narrowbert.plan(config, processes=8, seq_length=128, vocab_size=30522).parameters
        109514298
    """
    unknown = set(options) - set(PlanOptions.__dataclass_fields__)
    if unknown:
        raise UserError(f"unknown option {min(unknown)}: plan takes {', '.join(PlanOptions.__dataclass_fields__)}")
    return _plan(config, PlanOptions(**options))  # type: ignore[arg-type]


def open_mixture(path: str | Sequence[str], weights: Sequence[float] | None = None) -> Mixture:
    """Several shard folders as one, in the order in which ``narrowbert train`` reads them.

    Args:
        path: one shard folder, or several.
        weights: relative number of rows taken from each; by default in proportion to their sizes.

    Raises:
        UserError: a folder that cannot be opened, or folders of different tokenizers or row lengths.

    Example:
        >>> import narrowbert
        >>> mixture = narrowbert.open_mixture(["shards/wiki", "shards/books"], weights=[3, 1])
        >>> mixture.names
        ('shards/wiki', 'shards/books')
    """
    return _open_mixture(path, weights)


def train(config: RunConfig, objective: Objective | None = None) -> int:
    """Train or resume a run as ``narrowbert train`` does. Under torchrun or srun every process calls this.

    Args:
        config: of the run.
        objective: the loss to train with; by default that of masked language modelling.

    Returns:
        0 when the run is finished, or 85 after a signal: the run is saved and wants to be started again.

    Raises:
        UserError: the configuration, the shards or the run directory do not fit, or the run cannot continue (a full
            disk, divergence), or this process has trained before. One process may continue after that. One of
            several must end, since the others wait for it.

    A process trains once, because DeepSpeed keeps its process groups. While it trains, SIGTERM and SIGUSR1 save and
    end the run. So call it in the main thread.

    Example:
        >>> import narrowbert
        >>> config = narrowbert.run_config("configs/pretrain/quickstart.yaml", options={"data.path": "shards/mine"})
        >>> narrowbert.train(config)
        0
    """
    from pipeline.initialisation.check import check_start
    from pipeline.processes.signals import stop_signals_caught
    from pipeline.processes.world import SINGLE_PROCESS, world_from_environment
    from pipeline.runs.directory import check_run, is_finished, make_run_dir
    from pipeline.runs.time_budget import as_recorded
    from pipeline.tracking.description import check_tracking
    from pipeline.training import loop
    from pipeline.training.objective import MASKED_LANGUAGE_MODELLING

    world = world_from_environment() or SINGLE_PROCESS
    check_tracking(config.tracking)
    config = as_recorded(config)
    shards = check_run(config, world.size)
    if is_finished(config):
        return 0
    check_start(config, shards)
    make_run_dir(config)
    global _has_trained
    if _has_trained:
        raise UserError("this process has trained already, and DeepSpeed keeps its groups: train in a new process")
    _has_trained = True
    with stop_signals_caught():
        return loop.train(config, world, shards, objective or MASKED_LANGUAGE_MODELLING)


def evaluate(run_dir: str | Path, max_rows: int | None = None) -> Evaluation:
    """Loss and accuracy of a run's newest checkpoint on the validation split, in fp32.

    Args:
        run_dir: the run's directory.
        max_rows: validation rows to read; all of them where it is None.

    Returns:
        ``loss`` in nats per masked token, ``masked_accuracy``, ``perplexity`` and ``num_masked``.

    Raises:
        UserError: no run, no intact checkpoint, or shards that are not those of the run.

    Example:
        >>> import narrowbert
        >>> narrowbert.evaluate("runs/mine", max_rows=64).loss < 20
        True
    """
    from pipeline.training.validation import evaluate_run

    return evaluate_run(Path(run_dir), max_rows)[1]


def export(
    run_dir: str | Path, output: str | Path, *, pooling: str | None = None, model_type: str = "narrowbert"
) -> Path:
    """Write the newest intact checkpoint of a run as a folder that transformers loads.

    Args:
        run_dir: the run's directory.
        output: the folder to make; it must not exist.
        pooling: ``cls`` or ``mean``: how sentence-transformers makes embeddings of texts.
        model_type: ``bert`` or ``modernbert``: as that class of transformers, which needs no remote code. With
            ``pooling`` that is the encoder alone.

    Returns:
        ``output``.

    Raises:
        UserError: no run or checkpoint, ``output`` exists already, or the model is none of ``model_type``.

    Example:
        >>> import narrowbert
        >>> folder = narrowbert.export("runs/mine", "my-model")
        >>> (folder / "model.safetensors").exists()
        True
    """
    from pipeline.export.from_run import export_run
    from pipeline.export.plain.forms import FORMS

    if model_type not in ("narrowbert", *FORMS):
        raise UserError(f"model_type is {model_type}: give narrowbert, {', '.join(FORMS)}")
    export_run(Path(run_dir), Path(output), pooling, model_type)
    return Path(output)


def load_model(folder: str | Path) -> PreTrainedModel:
    """The model of an export or of a fine-tuned folder, in evaluation mode on the CPU.

    Args:
        folder: what ``export``, ``finetune`` or ``narrowbert convert`` wrote.

    Returns:
        An instance of the class that the folder names, such as ``NarrowBertForMaskedLM``.

    Raises:
        UserError: no such folder, or not one of this project.

    Example:
        >>> import narrowbert
        >>> type(narrowbert.load_model("my-model")).__name__
        'NarrowBertForMaskedLM'
    """
    path = Path(folder)
    name = (_open_config(path).architectures or ["NarrowBertModel"])[0]
    auto_class = next((auto for auto, found in _AUTO_CLASSES.items() if found.__name__ == name), None)
    if auto_class is None:
        raise UserError(f"{path} holds a {name}, by its config.json, which is no class of this project")
    return _open_model(path, auto_class).eval()


def encode(
    model: str | Path, texts: Iterable[str], *, pooling: str | None = None, max_length: int | None = None
) -> np.ndarray:
    """Embeddings of texts.

    Args:
        model: an exported or fine-tuned folder.
        texts: in any order and of any length; they are sorted by length inside.
        pooling: ``cls`` or ``mean``; by default the model's own, or ``mean`` where it has none.
        max_length: tokens per text that are read; by default what the model can read.

    Returns:
        [number of texts, hidden_size], float32, in the order of ``texts``.

    Raises:
        UserError: no such model, a ``max_length`` that it cannot read, another pooling, or one text in place of many.

    Example:
        >>> import narrowbert
        >>> narrowbert.encode("my-model", ["the cat sat .", "the dog ran ."], pooling="mean").shape[0]
        2
    """
    _refuse_one_text(texts)
    if pooling not in (None, *POOLINGS):
        raise UserError(f"pooling is {pooling}: give {' or '.join(POOLINGS)}")
    config = _open_config(Path(model))
    # Without pooling a fine-tuned model would answer with predictions.
    chosen = pooling or _pooling_of(Path(model)) or "mean"
    options = EncodeOptions(model=Path(model), pooling=chosen, max_length=max_length)
    windows = answer_texts(options, ((text,) for text in texts))
    vectors = [answer["embedding"] for answers, _ in windows for answer in answers]
    return np.array(vectors, dtype=np.float32).reshape(len(vectors), config.hidden_size)


def finetune(*files: str | Path, options: Mapping[str, Any] | None = None) -> list[Result]:
    """Train an exported model on labelled examples, once per seed, and measure it.

    Args:
        files: YAML files such as ``configs/finetune/classification.yaml``; a later one wins.
        options: dotted key -> value; they win over the files.

    Returns:
        One result per seed with ``seed``, ``metrics`` and ``losses``. Models and tables are in the folder ``output``.

    Raises:
        UserError: examples, labels or a model that do not fit, or results of another configuration in ``output``.

    Example:
        >>> import narrowbert
        >>> results = narrowbert.finetune(
        ...     "configs/finetune/classification.yaml",
        ...     options={
        ...         "model": "my-model",
        ...         "output": "my-results",
        ...         "data.train": "train.jsonl",
        ...         "data.validation": "validation.jsonl",
        ...     },
        ... )
        >>> "validation/accuracy" in results[0].metrics
        True
    """
    from pipeline.finetune.training import finetune as run

    config = _read(FinetuneConfig, files, options or {})
    check_finetune(config)
    return run(config, say=lambda _: None).seeds


def predict(
    model: str | Path, texts: Iterable[str] | Iterable[tuple[str, str]], *, max_length: int | None = None
) -> list[Answer]:
    """What a fine-tuned model says of texts, or of pairs of texts.

    Args:
        model: a folder that ``finetune`` wrote.
        texts: texts, or pairs of them for a model of pairs.
        max_length: tokens per text that are read; by default what the model can read.

    Returns:
        One dictionary per text: ``label`` and ``scores``, ``labels`` and ``scores``, ``score``, or ``tags``.

    Raises:
        UserError: no such model, one that predicts nothing of texts (an export, or one that answers questions), texts
            and pairs together, or one text in place of many.

    Example:
        >>> import narrowbert
        >>> sorted(narrowbert.predict("my-results/seed-1/model", ["the cat sat ."])[0])
        ['label', 'scores']
    """
    _refuse_one_text(texts)
    listed = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if len({len(text) for text in listed}) > 1:
        raise UserError("texts holds single texts and pairs: give only one kind")
    options = EncodeOptions(model=Path(model), max_length=max_length, pairs=any(len(text) == 2 for text in listed))
    found = [answer for answers, _ in answer_texts(options, listed) for answer in answers]
    if any("embedding" in answer for answer in found):
        raise UserError(f"{model} has not been fine-tuned, so it predicts nothing: use encode for embeddings")
    return found


def _read(cls: type[_Config], files: Sequence[str | Path], options: Mapping[str, Any]) -> _Config:
    argv = [f"--config={file}" for file in files]
    for key, value in options.items():
        text = str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
        argv.append(f"--{key}={text}")
    return read_config(cls, argv, "narrowbert", "")


def _refuse_one_text(texts: object) -> None:
    """A string is an iterable of strings too: its letters would become texts."""
    if isinstance(texts, str):
        raise UserError("texts is one string: give a list of texts")

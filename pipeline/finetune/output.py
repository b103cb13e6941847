"""The folder of results: whose it is, and what its results were made of."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.files import check_writable, write_atomically
from data_prep.contract.redaction import redact
from data_prep.contract.shard_format import file_sha256
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import Row, fields_of, split_name
from pipeline.runs.directory import flatten

RESULT = "result.json"
"""Of a seed that is measured."""

TRAINED = "trained.json"
"""Of a seed whose model is trained and not measured yet."""

_READ_OF_A_MODEL = (
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputFolder:
    """One configuration's, apart from seeds and tracking.

    It is made when the first seed is about to be trained, so that a mistake that is mended does not make it another
    configuration's.
    """

    path: Path
    """Where it is."""
    identity: dict[str, Any]
    """What results depend on, apart from the seeds, without secrets."""

    def seed(self, seed: int) -> Path:
        """The folder of a seed."""
        return self.path / f"seed-{seed}"

    def claim(self) -> None:
        """Make the folder this configuration's.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._is_own(_read_identity(self.path)):
                text = json.dumps(self.identity, indent=2) + "\n"
                write_atomically(self.path / "config.json", text, durable=True)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def check(self) -> None:
        """Refuse a folder of something else, or of another configuration that has come to results.

        Raises:
            UserError: as above.
        """
        kept = _read_identity(self.path)
        if kept is None:
            if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
                raise UserError(f"{self.path} exists and is no folder of results: name another output")
            check_writable("output", self.path)
            return
        has_results = any(any(self.path.glob(f"seed-*/{name}")) for name in (RESULT, TRAINED))
        is_ours = {"task", "data", "training"} <= kept.keys()  # a model has a config.json too
        if not self._is_own(kept) and (has_results or not is_ours):
            raise UserError(f"{self.path} holds results of another configuration: name another output or remove it")

    def _is_own(self, kept: Mapping[str, Any] | None) -> bool:
        # An option that the folder's version did not have was at its default there.
        return kept is not None and flatten(_identity(FinetuneConfig())) | flatten(kept) == flatten(self.identity)


def output_folder(config: FinetuneConfig) -> OutputFolder:
    """The folder that the configuration names."""
    return OutputFolder(path=Path(config.output), identity=_identity(config))


def _read_identity(output: Path) -> dict[str, Any] | None:
    path = output / "config.json"
    if not path.is_file():
        return None
    try:
        kept = redact(dict(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): name another output or remove this one") from error
    if "output_dir" in kept:  # the name of ``output`` in folders of version 0.1
        kept["output"] = kept.pop("output_dir")
    return kept


def _identity(config: FinetuneConfig) -> dict[str, Any]:
    content = config_as_dict(config)
    return redact({**content, "tracking": None, "training": {**content["training"], "seeds": None}})


def hash_inputs(config: FinetuneConfig, splits: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """sha256 of what results are made of, by the option that names it: the examples as they are read, and the model."""
    hashes = {}
    for split, rows in splits.items():
        fields, digest = fields_of(config, split), hashlib.sha256()
        for row in rows:
            digest.update(json.dumps([row[field] for field in fields], sort_keys=True, default=str).encode() + b"\n")
        hashes[f"data.{split}"] = digest.hexdigest()
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _READ_OF_A_MODEL for path in Path(config.model).glob(pattern)):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return {**hashes, "model": digest.hexdigest()}


def check_inputs(kept: Mapping[str, str], own: Mapping[str, str], config: FinetuneConfig, folder: Path) -> None:
    """Refuse to give results out as those of other examples, or of another model.

    Args:
        kept: hashes of what a seed was made of; nothing by earlier versions, which did not record it.
        own: those of now.
        folder: of the seed.

    Raises:
        UserError: one of them has changed.
    """
    for option in own.keys() & kept.keys():
        if kept[option] != own[option]:
            name = config.model if option == "model" else split_name(config, option.removeprefix("data."))
            raise UserError(
                f"{name} ({option}) has changed since {folder} was made of it: name another output, or remove {folder} "
                "to train it again"
            )

"""A model folder as it is found: every file that is read is checked first, so that a damaged one is named.

What transformers says of such a folder is the traceback of whichever library met the damage first.
"""

import contextlib
import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from data_prep.contract.command_line import UserError
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.modeling_narrowbert import GATED, NarrowBertPreTrainedModel

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_SIZES = (
    "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "type_vocab_size",
)  # fmt: skip
_NAMES_SHOWN = 3


def read_json(path: Path) -> dict[str, Json]:
    """The keys and values of a JSON file.

    Raises:
        UserError: it is missing, cannot be read, or holds no keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no model folder: {_what_it_is(path.parent, path.name)}") from error
    except NotADirectoryError as error:
        raise UserError(f"{path.parent} is no model folder: it is a file") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is no JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it holds no keys: copy or download it again")
    return content


def _what_it_is(folder: Path, name: str) -> str:
    if not folder.exists():
        return "it does not exist"
    if (folder / "run.json").is_file():
        return f"it is a run, of which narrowbert export {shlex.quote(str(folder))} --output DIR makes one"
    return f"it has no {name} (narrowbert export writes one)"


def read_settings(folder: Path) -> dict[str, Json]:
    """``config.json`` of a model folder, with values of the types that NarrowBERT's and BERT's have.

    Raises:
        UserError: no such folder or file, a damaged one, or a value that no model has.
    """
    path = folder / "config.json"
    content = read_json(path)
    kinds = get_type_hints(NarrowBertConfig.__init__) | {"pad_token_id": int, "architectures": list | None}
    for key in sorted(content.keys() & (kinds.keys() - {"kwargs", "return"})):
        if not _fits(content[key], kinds[key]) or (key in _SIZES and content[key] == 0):
            raise UserError(f"{path}: {key} cannot be {json.dumps(content[key])}: copy the file again, or mend it")
    if content.get("hidden_act", "gelu") not in {*ACT2FN, *GATED}:
        raise UserError(f"{path}: transformers has no hidden_act {content['hidden_act']}")
    return content


def _fits(value: Json, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind | int if kind is float else kind)


def open_config(folder: Path, also: Collection[str] = ()) -> PreTrainedConfig:
    """The configuration of a NarrowBERT, or of a model of a type in ``also``.

    Raises:
        UserError: as of ``read_settings``, or a model of another type.
    """
    settings, path = read_settings(folder), folder / "config.json"
    kind = settings.get("model_type")
    if kind is None:
        tuned = next((str(found) for found in sorted(folder.glob("seed-*/model"))), None)
        raise UserError(f"{path} names no model_type: it is no model's" + (f" (give {tuned})" if tuned else ""))
    if kind not in (NarrowBertConfig.model_type, *also):
        hint = "narrowbert convert makes a NarrowBERT of it" if kind in ("bert", "modernbert") else "give a NarrowBERT"
        raise UserError(f"{folder} is a {kind}, by its config.json: {hint}{' or a BERT' * ('bert' in also)}")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what its own checks and the values' types happen to raise
        raise UserError(f"cannot read {path}: {error}") from error


def open_tokenizer(folder: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; a special token that it does not name is that of the configuration.

    Raises:
        UserError: none, a damaged one, or one with ids that the model does not have.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for every kind of bad file
            raise UserError(f"{path} is damaged or no tokenizer ({error}): copy it again") from error
    elif not (folder / "vocab.txt").is_file():
        raise UserError(f"{folder} has no tokenizer.json: copy the one of the model's shards or of its run there")
    if (folder / "tokenizer_config.json").is_file():
        read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:  # of transformers and of tokenizers, whose kinds are not told
        raise UserError(f"cannot load the tokenizer of {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder} has no tokenizer.json")
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer of {folder} has ids up to {largest}, config.json a vocab_size of {config.vocab_size}: "
            "it is another model's, copy the right one there"
        )
    for role in ("pad", "cls", "sep", "mask"):
        number = getattr(config, f"{role}_token_id", None)
        if getattr(tokenizer, f"{role}_token") is None and number is not None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(number))
    return tokenizer


def open_model(folder: Path, auto_class: str, **options: Any) -> PreTrainedModel:
    """A model with all its weights; only a head may be new.

    Args:
        folder: opened by ``open_config`` before.
        auto_class: the class of transformers that loads it.
        options: for its ``from_pretrained``.

    Raises:
        UserError: weights that are missing, damaged or of another shape.
    """
    if any(folder.glob("*.safetensors*")) or not any(folder.glob("pytorch_model*.bin")):
        for path in weight_files(folder):
            read_headers(path)
    try:
        with quiet_transformers():
            model, info = getattr(transformers, auto_class).from_pretrained(
                folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # whatever a library raises here is about the folder
        raise UserError(f"cannot load the model {folder}: {error}") from error
    _check_loaded(folder, model, info)
    return model


def _check_loaded(folder: Path, model: PreTrainedModel, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse weights that were left as initialised; of a BERT, heads and pooler may be (a NarrowBERT checks itself)."""
    wrong = sorted((name, list(there), list(here)) for name, there, here in info["mismatched_keys"])
    if wrong:
        shown = "; ".join(f"{name} is {there}, not {here}" for name, there, here in wrong[:_NAMES_SHOWN])
        is_tuned = wrong[0][0].startswith("classifier.")
        hint = "it was tuned on other labels, give the model that it was tuned from" if is_tuned else "copy it again"
        raise UserError(f"the weights of {folder} do not fit its config.json or the labels ({shown}): {hint}")
    prefix = model.base_model_prefix
    inside = f"{prefix}." if hasattr(model, prefix) else ""
    lacking = sorted(
        name for name in info["missing_keys"] if name.startswith(inside) and not name.startswith(f"{inside}pooler.")
    )
    if lacking and not isinstance(model, NarrowBertPreTrainedModel):
        shown = ", ".join(lacking[:_NAMES_SHOWN])
        raise UserError(f"the weights of {folder} lack {len(lacking)} tensors of a {model.config.model_type}: {shown}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, all of which are there.

    Raises:
        UserError: there are none, one that the index names is missing, or the index is damaged.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names or any(Path(str(n)).name != n for n in names.values()):
            raise UserError(f"{index} is damaged: its weight_map does not name files beside it")
        files = [folder / name for name in sorted({str(name) for name in names.values()})]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)}, named by {index.name}: copy or download them again")
        return files
    pickled = sorted(folder.glob("pytorch_model*.bin"))
    if pickled:
        raise UserError(
            f"{pickled[0]} is a pickle, not read here; convert it with: python -c 'import pathlib, sys, torch, "
            "safetensors.torch as s; p = pathlib.Path(sys.argv[1]); s.save_file({k: v.clone().contiguous() for f in "
            'p.glob("pytorch_model*.bin") for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}, '
            f'p / "model.safetensors")\' {shlex.quote(str(folder))}'
        )
    raise UserError(f"{folder} has no model.safetensors: copy or download it again, with all its files")


def read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors' name of the type of every tensor of a file, by its name there.

    Raises:
        UserError: a file that is damaged or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - a handle is no dictionary
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise UserError(f"{path} is Git's pointer to the weights, not the weights: git lfs pull") from error
        raise UserError(f"{path} is damaged or cut short ({error}): copy or download it again") from error


_LFS_POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither bars nor warnings of transformers: that a head is new is no news."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()

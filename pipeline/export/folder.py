"""Between the training model's parameters and the exported transformers model's, and the export itself.

The training model follows Megatron: sublayers numbered one by one on each side of the narrowing
point, query, key and value rows packed per head into one matrix. The export follows BERT: an
attention and the feed-forward after it are one layer, query, key and value are separate, and so are the
two halves of a gated unit. Keys and values of the frozen state, one matrix in training, are spread over
the narrow layers that first read them.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig

from data_prep.contract.command_line import UserError
from data_prep.contract.files import check_writable, is_empty_working_folder, process_name, safetensors_written_to
from data_prep.contract.tokenizer import tokenizer_content
from pipeline.export import configuration_narrowbert, modeling_narrowbert
from pipeline.export.configuration_narrowbert import NarrowBertConfig
from pipeline.export.model_card import Validation, model_card, plain_card
from pipeline.export.model_folder import quiet_transformers, read_json
from pipeline.export.modeling_narrowbert import NarrowBertForMaskedLM, NarrowBertModel
from pipeline.export.names import CONFIG_NAMES, TIED, TRAINING_ONLY, State, left_side, to_transformers
from pipeline.export.plain.forms import FORMS, check_form
from pipeline.export.plain.writing import write_plain_weights

AUTO_MAP = {
    "AutoConfig": "configuration_narrowbert.NarrowBertConfig",
    "AutoModel": "modeling_narrowbert.NarrowBertModel",
    "AutoModelForMaskedLM": "modeling_narrowbert.NarrowBertForMaskedLM",
    "AutoModelForQuestionAnswering": "modeling_narrowbert.NarrowBertForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_narrowbert.NarrowBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_narrowbert.NarrowBertForTokenClassification",
}

SPECIAL_TOKEN_ROLES = ("pad", "unk", "cls", "sep", "mask")


def write_export(
    state: Mapping[str, torch.Tensor],
    *,
    model_config: Mapping[str, Any],
    tokenizer_path: Path,
    special_ids: Mapping[str, int],
    facts: Mapping[str, Any],
    output: Path,
    validation: Validation | None = None,
    pooling: str | None = None,
    model_type: str = NarrowBertConfig.model_type,
    encoder_only: bool = False,
) -> list[str]:
    """Write a folder that transformers loads: weights (fp32), code, tokenizer, model card.

    It appears whole or not at all, after it has been loaded back (a plain form by transformers) with equal parameters.

    Args:
        state: the training model's full parameters, of any floating type.
        model_config: its configuration with its ``vocab_size``: the keys of CONFIG_NAMES and TRAINING_ONLY.
        tokenizer_path: the ``tokenizer.json`` of the shards, copied as it is, or the vocab.txt of a BERT.
        special_ids: the ids of pad, unk, cls, sep and mask in it.
        facts, validation: of the run, for the model card.
        output: the folder to make, or an empty one.
        pooling: ``cls`` or ``mean``, how sentence-transformers makes embeddings; a plain form is then an encoder.
        model_type: ``narrowbert``, or a key of FORMS.
        encoder_only: leave out what is right of ``:``, and the head with it.

    Returns:
        Lines on what a user should know.

    Raises:
        UserError: `output` cannot be written, the tokenizer is another model's, or the model has no such form.
        ValueError: parameters or configuration that do not make the exported model.
    """
    check_output(output)
    config = export_config(model_config, special_ids)
    tokenizer = tokenizer_content(tokenizer_path)
    tokenizer_config = _tokenizer_config(tokenizer, tokenizer_path, config, special_ids)
    weights, config = _export_form(state, config, encoder_only=encoder_only)
    form = FORMS.get(model_type)
    if form is not None:
        check_form(config, form, NarrowBertModel.__name__ if encoder_only else NarrowBertForMaskedLM.__name__)
    name, mask_token = Path(output).resolve().name, tokenizer_config["mask_token"]
    with whole_folder(output) as partial:
        if form is None:
            described, remarks = _write_model(partial, config, weights), list[str]()
            card = model_card(name, described, mask_token, facts, validation)
        else:
            described, remarks = write_plain_weights(
                partial, config, weights, form, encoder_alone=encoder_only or pooling is not None
            )
            tokenizer_config["model_input_names"] = form.inputs
            card = plain_card(name, described, mask_token, facts, validation)
        (partial / "tokenizer.json").write_bytes(tokenizer)
        _write_json(partial / "tokenizer_config.json", tokenizer_config)
        if pooling is not None:
            write_pooling(partial, described, pooling)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return remarks


def _export_form(
    state: Mapping[str, torch.Tensor], config: NarrowBertConfig, *, encoder_only: bool
) -> tuple[State, NarrowBertConfig]:
    """Parameters in fp32 under the export's names, of the whole model or of its left side, and its configuration."""
    weights = {n: w.detach().cpu().float().contiguous() for n, w in to_transformers(state, config).items()}
    if not encoder_only:
        return weights, config
    try:
        return left_side(weights, config)
    except ValueError as error:
        raise UserError(f"--encoder_only: {error}") from error


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder to write in, which gets the name ``output`` when all is written; else nothing is left of it.

    Raises:
        UserError: it cannot be written.
    """
    output = Path(output).resolve()
    partial = output.with_name(f".{output.name}.{process_name()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(output)
    except OSError as error:
        raise UserError(f"cannot write the export {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_model(folder: Path, config: NarrowBertConfig, weights: State) -> PreTrainedConfig:
    """Configuration, code and weights in our own form, loaded back; returns what is in config.json."""
    config.save_pretrained(folder)
    for module in (configuration_narrowbert, modeling_narrowbert):
        assert module.__file__ is not None
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
    with safetensors_written_to(folder):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _load_back(folder, weights, AutoModel if config.architectures == ["NarrowBertModel"] else AutoModelForMaskedLM)
    return config


def check_output(output: str | Path) -> None:
    """Refuse a place for an export before there is any work.

    Raises:
        UserError: something is there, or it cannot be written.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output} exists and is not an empty folder: name another or remove it")
    if is_empty_working_folder(output):
        raise UserError(
            f"{output} is the folder that you stand in, and would be replaced: name another, such as {output / 'model'}"
        )
    check_writable("the folder of the export", output.absolute().parent)


def export_config(model_config: Mapping[str, Any], special_ids: Mapping[str, int]) -> NarrowBertConfig:
    """The export's configuration of a training model (arguments as in ``write_export``).

    Raises:
        ValueError: fields that are missing or unknown.
    """
    # A field that the exported classes do not know would change what they compute: never drop it.
    wrong = set(model_config) ^ (set(CONFIG_NAMES) | TRAINING_ONLY)
    if wrong:
        raise ValueError(f"model configuration fields missing or unknown to the export: {', '.join(sorted(wrong))}")
    if set(special_ids) != set(SPECIAL_TOKEN_ROLES):
        raise ValueError(f"special_ids are {sorted(special_ids)}, expected {sorted(SPECIAL_TOKEN_ROLES)}")
    named: dict[str, Any] = {theirs: model_config[ours] for ours, theirs in CONFIG_NAMES.items()}
    named |= {f"{role}_token_id": special_ids[role] for role in ("pad", "cls", "sep", "mask")}
    return NarrowBertConfig(
        **named,
        architectures=[NarrowBertForMaskedLM.__name__],
        auto_map=dict(AUTO_MAP),
        dtype="float32",
    )


def _tokenizer_config(
    content: bytes, path: Path, config: NarrowBertConfig, special_ids: Mapping[str, int]
) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json, which says everything else."""
    tokenizer = Tokenizer.from_buffer(content)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise UserError(f"{path} has ids up to {largest}, the model only {config.vocab_size} words: it is another's")
    tokens = {role: tokenizer.id_to_token(special_ids[role]) for role in SPECIAL_TOKEN_ROLES}
    absent = [f"{role} ({special_ids[role]})" for role, token in tokens.items() if token is None]
    if absent:
        raise UserError(f"{path} has no token with the id of {', '.join(absent)}: it is another model's")
    if tokenizer.encode("").ids != [special_ids["cls"], special_ids["sep"]]:
        raise UserError(f"{path} does not put {tokens['cls']} before and {tokens['sep']} after a text")
    lowercases = tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str("A") == "a"
    return {
        # The class that takes tokenizer.json as it stands; BertTokenizer would rebuild its parts.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": lowercases,
        **{f"{role}_token": token for role, token in tokens.items()},
    }


def write_pooling(folder: Path, config: PreTrainedConfig, pooling: str) -> None:
    """What sentence-transformers reads beside a model: ``SentenceTransformer(folder)`` pools by ``cls`` or ``mean``.

    By ``cls`` a NarrowBERT makes the embedding itself, as it computes no other state. There is no module that pools
    then: one that a user adds finds no states of tokens, instead of taking the mean of one.
    """
    settings: dict[str, Any] = {"max_seq_length": config.max_position_embeddings, "do_lower_case": False}
    modules = [("", "sentence_transformers.models.Transformer")]
    if pooling == "cls" and isinstance(config, NarrowBertConfig):
        how = {"method": NarrowBertModel.cls_states.__name__, "method_output_name": None}
        settings |= {"modality_config": {"text": how}, "module_output_name": _EMBEDDING}
    else:
        modules.append(("1_Pooling", "sentence_transformers.models.Pooling"))
        modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": config.hidden_size, **modes})
    _write_json(folder / "sentence_bert_config.json", settings)
    _write_json(
        folder / "modules.json",
        [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(modules)],
    )


_EMBEDDING = "sentence_embedding"
"""sentence-transformers' name of the vector of a text."""


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def pooling_of(folder: Path) -> str | None:
    """``cls`` or ``mean``, as an export says that texts become embeddings; None where it does not.

    Read as this and earlier versions wrote it, and as sentence-transformers writes it again.

    Raises:
        UserError: a file that is damaged.
    """
    settings, modes = (
        read_json(path) if path.exists() else {}
        for path in (folder / "sentence_bert_config.json", folder / "1_Pooling/config.json")
    )
    if settings.get("module_output_name") == _EMBEDDING:
        return "cls"
    if not modes:
        return None
    return "mean" if modes.get("pooling_mode_mean_tokens") or modes.get("pooling_mode") == "mean" else "cls"


def _load_back(folder: Path, weights: State, auto_class: type[AutoModel | AutoModelForMaskedLM]) -> None:
    """Load what was written as a user would, and compare.

    Raises:
        ValueError: a parameter that is missing, unexpected or different after loading.
    """
    with quiet_transformers():
        model, info = auto_class.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    problems = [f"{kind}: {name}" for kind, names in info.items() for name in sorted(map(str, names))]
    loaded = {f"{'' if auto_class is AutoModelForMaskedLM else 'bert.'}{n}": w for n, w in model.state_dict().items()}
    problems += [f"missing: {name}" for name in loaded if name not in weights and name not in TIED]
    problems += [f"different: {n}" for n, w in weights.items() if n in loaded and not loaded[n].equal(w)]
    if problems:
        raise ValueError("the export does not load back as written: " + "; ".join(problems))

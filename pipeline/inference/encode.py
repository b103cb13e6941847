"""``narrowbert encode``: lines of text -> one JSON object a line, in the same order.

Lines are read in windows; inside a window they are sorted by length, so that a batch holds texts of about the
same length. What stands in the JSON depends on the model: ``embedding``; ``label`` and ``scores``; ``labels``
and ``scores`` where several may hold at once; ``score`` of a regression; ``tags`` of the words.

Shapes: B texts of a batch, S longest of them in tokens, W most words of them, H hidden size, C labels.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from tokenizers import Encoding
from transformers import PreTrainedConfig, PreTrainedModel

from data_prep.contract.command_line import UserError
from pipeline.engine.bf16_products import ensure_bf16_products
from pipeline.export import NarrowBertConfig, NarrowBertModel
from pipeline.export.folder import pooling_of
from pipeline.export.model_folder import open_config, open_model, open_tokenizer
from pipeline.export.plain.forms import FORMS

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POOLINGS = ("cls", "mean")
_PREDICTORS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}

Texts = tuple[str, ...]

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What ``narrowbert encode`` does with its lines."""

    model: Path
    """Exported or fine-tuned folder."""
    pooling: str | None = None
    """``cls`` or ``mean``: embeddings. None: what the model predicts, or its own pooling (``mean`` if it has none)."""
    pairs: bool = False
    """A line is two texts with a tab between them."""
    max_length: int | None = None
    """Tokens of a text (of both texts of a pair) that are read; the rest is cut off. Default: the model's limit."""
    batch_tokens: int = 8192
    """Tokens of a batch, padding included."""
    window: int = 2048
    """Lines that are read, and sorted by length, before the first of them is answered."""
    precision: str = "fp32"
    """``fp32``, ``bf16`` or ``fp16``."""


def encode(options: EncodeOptions, lines: Iterable[bytes], output: TextIO) -> int:
    """Write one JSON object for each of ``lines``.

    Returns:
        How many texts were longer than ``max_length`` and were cut.

    Raises:
        UserError: no such model, a model that answers no single text, options that do not fit it, a line that is
            not UTF-8 or, with ``pairs``, not two texts.
    """
    cut = 0
    for answers, cut_of_window in answer_texts(options, _read_texts(lines, options.pairs)):
        cut += cut_of_window
        output.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        output.flush()
    return cut


def answer_texts(options: EncodeOptions, texts: Iterable[Texts]) -> Iterator[tuple[list[Answer], int]]:
    """Windows of answers, in the order of ``texts``, each with the number of its texts that were cut.

    Raises:
        UserError: no such model, a model that answers no single text, or options that do not fit it.
    """
    encoder, waiting = _open_encoder(options), _checked(texts)
    while window := list(itertools.islice(waiting, options.window)):
        encodings = encoder.tokenize(window)
        answers: list[Answer] = [{}] * len(window)
        for batch in batches_by_length([len(encoding.ids) for encoding in encodings], options.batch_tokens):
            found = encoder.answer([window[i] for i in batch], [encodings[i] for i in batch])
            for index, answer in zip(batch, found, strict=True):
                answers[index] = answer
        yield answers, sum(bool(encoding.overflowing) for encoding in encodings)


def _checked(texts: Iterable[Texts]) -> Iterator[Texts]:
    for number, parts in enumerate(texts, 1):
        for text in parts:
            if not isinstance(text, str):
                raise UserError(f"text {number} is {text!r}: give a string")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"text {number} holds half of a character, at character {error.start + 1}") from error
        yield parts


def batches_by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches, shortest first; rows x longest is at most ``batch_tokens``, except for a single long row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _read_texts(lines: Iterable[bytes], pairs: bool) -> Iterator[Texts]:
    """One text, or two, of each line."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} is not UTF-8 (byte {error.start + 1}): convert it, with iconv") from error
        texts = tuple(text.split("\t")) if pairs else (text,)
        if pairs and len(texts) != 2:
            raise UserError(f"line {number} has {len(texts) - 1} tabs: --pairs needs one, between two texts")
        yield texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoder:
    """A loaded model and how it answers."""

    tokenize: Callable[[list[Texts]], list[Encoding]]
    answer: Callable[[list[Texts], list[Encoding]], list[Answer]]


def _open_encoder(options: EncodeOptions) -> _Encoder:
    config = _read_config(options)
    kind = (config.architectures or [""])[0].rpartition("Bert")[2]  # of our own class or of a plain one
    auto_class = "AutoModel" if options.pooling else _PREDICTORS.get(kind, "AutoModel")
    if kind == "ForQuestionAnswering" and options.pooling is None:
        raise UserError(f"{options.model} answers questions about a text: give --pooling cls or mean for embeddings")
    is_tagger = auto_class == "AutoModelForTokenClassification"
    if is_tagger and options.pairs:
        raise UserError(f"{options.model} tags the words of one text: leave out --pairs, or give --pooling")
    tokenizer: Any = open_tokenizer(options.model, config)
    model: Any = open_model(options.model, auto_class, dtype=PRECISIONS[options.precision])
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if options.precision == "bf16":
        ensure_bf16_products(model.device)
    pooling = options.pooling or pooling_of(options.model) or "mean"
    limit = options.max_length or config.max_position_embeddings

    def tokenize(texts: list[Texts]) -> list[Encoding]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        if is_tagger:
            columns = [[text.split() for text in columns[0]]]
        return tokenizer(*columns, truncation=True, max_length=limit, is_split_into_words=is_tagger).encodings

    answer = {
        "AutoModel": lambda _, encodings: _embed(model, encodings, pooling),
        "AutoModelForSequenceClassification": lambda _, encodings: _classify(model, encodings),
        "AutoModelForTokenClassification": lambda texts, encodings: _tag(model, texts, encodings),
    }[auto_class]
    return _Encoder(tokenize=tokenize, answer=answer)


def _read_config(options: EncodeOptions) -> PreTrainedConfig:
    config = open_config(options.model, also=FORMS)
    if options.batch_tokens < 1 or options.window < 1:
        raise UserError("--batch_tokens and --window are at least 1")
    if options.max_length is not None and not 3 <= options.max_length <= config.max_position_embeddings:
        raise UserError(f"--max_length is 3 to the model's {config.max_position_embeddings}, not {options.max_length}")
    return config


def pad_batch(encodings: list[Encoding], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """``input_ids``, ``token_type_ids`` and ``attention_mask``, each [B, S]."""
    longest = max(len(encoding.ids) for encoding in encodings)

    def rectangle(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)

    return {
        "input_ids": rectangle([e.ids for e in encodings], pad_id),
        "token_type_ids": rectangle([e.type_ids for e in encodings], 0),
        "attention_mask": rectangle([e.attention_mask for e in encodings], 0),
    }


def _inputs(model: PreTrainedModel, encodings: list[Encoding]) -> dict[str, torch.Tensor]:
    """What the model reads of a batch: a plain ModernBERT has no ``token_type_ids``."""
    assert model.config.pad_token_id is not None
    inputs = pad_batch(encodings, model.config.pad_token_id, model.device)
    form = FORMS.get(model.config.model_type)
    return {name: inputs[name] for name in form.inputs} if form else inputs


@torch.inference_mode()
def _embed(model: Any, encodings: list[Encoding], pooling: str) -> list[Answer]:
    inputs = _inputs(model, encodings)
    if pooling == "cls" and isinstance(model, NarrowBertModel):
        vectors_BH = model.cls_states(**inputs)
    elif pooling == "cls":
        vectors_BH = model(**inputs).last_hidden_state[:, 0]
    else:
        hidden_BSH = model(**inputs).last_hidden_state.float()
        real_BS1 = inputs["attention_mask"].unsqueeze(-1)
        vectors_BH = (hidden_BSH * real_BS1).sum(1) / real_BS1.sum(1)
    _require_numbers(vectors_BH)
    # Nine digits give a 32-bit number back exactly.
    return [{"embedding": [float(f"{x:.9g}") for x in vector]} for vector in vectors_BH.float().tolist()]


@torch.inference_mode()
def _classify(model: PreTrainedModel, encodings: list[Encoding]) -> list[Answer]:
    logits_BC = model(**_inputs(model, encodings)).logits.float()
    _require_numbers(logits_BC)
    kind, names = model.config.problem_type, _label_names(model)
    if kind == "regression" or len(names) == 1:
        return [{"score": row[0] if len(row) == 1 else row} for row in logits_BC.tolist()]
    is_multi_label = kind == "multi_label_classification"
    scores = (logits_BC.sigmoid() if is_multi_label else logits_BC.softmax(-1)).tolist()
    named = [{names[number]: score for number, score in enumerate(row)} for row in scores]
    if is_multi_label:
        return [{"labels": [name for name, score in row.items() if score > 0.5], "scores": row} for row in named]
    return [{"label": max(row, key=row.__getitem__), "scores": row} for row in named]


@torch.inference_mode()
def _tag(model: PreTrainedModel, texts: list[Texts], encodings: list[Encoding]) -> list[Answer]:
    """Tags of words split at white space, None for those that were cut off.

    Only first sub-words are read, and of a NarrowBERT computed.
    """
    firsts = [first_subwords(encoding.word_ids) for encoding in encodings]
    most = max(1, *map(len, firsts))
    positions_BW = torch.tensor([[*row, *[0] * (most - len(row))] for row in firsts], device=model.device)
    inputs = _inputs(model, encodings)
    if isinstance(model.config, NarrowBertConfig):
        logits_BWC = model(**inputs, narrow_positions=positions_BW).logits
    else:
        logits_BWC = model(**inputs).logits.take_along_dim(positions_BW.unsqueeze(-1), 1)
    _require_numbers(logits_BWC)
    tags_BW = logits_BWC.argmax(-1).tolist()
    names = _label_names(model)
    answers = []
    for (text, *_), encoding, positions, tags in zip(texts, encodings, firsts, tags_BW, strict=True):
        named: list[str | None] = [None] * len(text.split())
        for position, tag in zip(positions, tags, strict=False):
            named[encoding.word_ids[position]] = names[tag]  # pyright: ignore[reportArgumentType, reportCallIssue]
        answers.append({"tags": named})
    return answers


def _require_numbers(results: torch.Tensor) -> None:
    """JSON has neither NaN nor infinity, and an index of vectors should have none."""
    if not results.isfinite().all():
        raise UserError(
            "the model answers with what is no number: take --precision fp32 or bf16, and if it stays, its weights are "
            "damaged, or it diverged in training"
        )


def _label_names(model: PreTrainedModel) -> dict[int, str]:
    assert model.config.id2label is not None
    return {int(number): name for number, name in model.config.id2label.items()}


def first_subwords(word_ids: list[int | None]) -> list[int]:
    """Positions of the first sub-word of every word: the narrow positions of tagging."""
    return [i for i, word in enumerate(word_ids) if word is not None and (i == 0 or word != word_ids[i - 1])]

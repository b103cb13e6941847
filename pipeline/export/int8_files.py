"""int8 copies of a folder's ONNX files, each beside its original: ``narrowbert onnx DIR --int8 TEXTS``.

Dynamic quantisation by onnxruntime: weights to 8 bits when the file is made, activations while it runs.

Shapes: B texts, S longest of them in tokens, P most positions asked for.
"""

import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedConfig

from data_prep.contract.command_line import UserError
from data_prep.contract.files import process_name
from data_prep.contract.tokenizer import load_tokenizer
from pipeline.export.model_folder import open_config, open_tokenizer
from pipeline.export.onnx_files import FILL_MASK, LOGITS, networks
from pipeline.export.plain.forms import FORMS

_MOST_TEXTS = 512
_BATCH = 8
_ROUNDS = 3
_MASKED = 0.15

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A quantised file beside its original, on the same texts and this machine."""

    path: Path
    """The int8 file."""
    megabytes: tuple[float, float]
    """Sizes, original first."""
    quality: str
    """What became of the results, in words."""
    speed: float
    """Texts per second of int8 divided by those of the original."""


def write_int8(folder: Path, originals: list[Path], texts: Path) -> list[Comparison]:
    """Write ``X.int8.onnx`` beside each of ``originals``, and measure both on lines of ``texts``.

    At most 512 lines, spread over the file, in batches of 8 of about the same length. A fill-mask network is judged by
    the tokens it finds at masked positions (15%), an encoder by the cosine between both embeddings of a text, a
    classifier by how often both give the same label.

    Args:
        folder: a model folder with its tokenizer.
        originals: files that ``write_onnx`` wrote there.
        texts: a text a line, UTF-8.

    Raises:
        UserError: no texts, none that has a token, no tokenizer.
    """
    config, encodings = read_texts(folder, texts)
    outputs = {network.name: network.outputs for network in networks(folder, config)}
    compared = []
    for original in originals:
        path = original.with_suffix(".int8.onnx")
        partial = path.with_name(f".{path.name}.{process_name()}.partial")
        try:
            quantize(original, partial)
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)
        sizes = (original.stat().st_size / 1e6, path.stat().st_size / 1e6)
        batches = list(_batches(encodings, config, masked=original.stem == FILL_MASK))
        found, speed = _run_both(original, path, [inputs for inputs, _ in batches])
        quality = _judge(outputs[original.stem], found, [wanted for _, wanted in batches])
        compared.append(Comparison(path=path, megabytes=sizes, quality=quality, speed=speed))
    return compared


def read_texts(folder: Path, texts: Path) -> tuple[PreTrainedConfig, list[Encoding]]:
    """What ``write_int8`` measures on; called before the files are made, it refuses first what it would refuse last.

    Raises:
        UserError: as of ``write_int8``.
    """
    config = open_config(folder, also=FORMS)
    open_tokenizer(folder, config)
    return config, _tokenize(load_tokenizer(folder / "tokenizer.json"), texts, config.max_position_embeddings)


def quantize(original: Path, path: Path) -> None:
    """Write an int8 copy of an ONNX file, unmeasured."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    network = onnx.load(original)
    del network.graph.value_info[:]  # the quantiser transposes weights and would hold them to the shapes from before
    ranks = {weight.name: len(weight.dims) for weight in network.graph.initializer}
    # Folded heads: a stack of matrices for one row, which onnxruntime does not multiply in int8 with a scale a column.
    stacked = [node.name for node in network.graph.node if any(ranks.get(name, 0) > 2 for name in node.input)]
    logging.disable(logging.WARNING)  # it advises to infer shapes first, which the exporter has done
    try:
        # 7 bits for weights: without VNNI the processor adds products in 16 bits, which 8 bits overflow.
        quantize_dynamic(
            network, path, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8, nodes_to_exclude=stacked
        )
    finally:
        logging.disable(logging.NOTSET)


def _tokenize(tokenizer: Tokenizer, texts: Path, max_length: int) -> list[Encoding]:
    """Encodings of lines that have a token of their own, shortest first."""
    try:
        lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--int8 {texts} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    tokenizer.enable_truncation(max_length)
    count = min(len(lines), _MOST_TEXTS)
    encodings = tokenizer.encode_batch([lines[i * len(lines) // count] for i in range(count)])
    encodings = [encoding for encoding in encodings if 0 in encoding.special_tokens_mask]
    if not encodings:
        raise UserError(f"--int8 {texts} has no text: give a file with a text a line, to measure what int8 costs")
    return sorted(encodings, key=lambda encoding: len(encoding.ids))


def _batches(
    encodings: list[Encoding], config: PreTrainedConfig, *, masked: bool
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Inputs, and with ``masked`` the tokens that were there, [B, P], -1 where a text has fewer."""
    generator = np.random.default_rng(0)
    for start in range(0, len(encodings), _BATCH):
        group = encodings[start : start + _BATCH]
        ids_BS = np.full((len(group), len(group[-1].ids)), config.pad_token_id, dtype=np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for row, encoding in enumerate(group):
            ids_BS[row, : len(encoding.ids)] = encoding.ids
            mask_BS[row, : len(encoding.ids)] = 1
        inputs = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        wanted = np.zeros((len(group), 0), dtype=np.int64)
        if masked:
            assert config.mask_token_id is not None
            inputs["narrow_positions"], wanted = _mask(group, ids_BS, config.mask_token_id, generator)
        yield inputs, wanted


def _mask(
    group: list[Encoding], ids_BS: np.ndarray, mask_id: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put [MASK] into ``ids_BS``; the positions [B, P], and what stood there."""
    chosen = []
    for encoding in group:
        words = np.flatnonzero(np.asarray(encoding.special_tokens_mask) == 0)
        chosen.append(np.sort(generator.choice(words, max(1, round(_MASKED * len(words))), replace=False)))
    positions_BP = np.zeros((len(group), max(map(len, chosen))), dtype=np.int64)
    wanted_BP = np.full_like(positions_BP, -1)
    for row, positions in enumerate(chosen):
        positions_BP[row, : len(positions)] = positions
        wanted_BP[row, : len(positions)] = ids_BS[row, positions]
        ids_BS[row, positions] = mask_id
    return positions_BP, wanted_BP


def _run_both(original: Path, quantised: Path, batches: list[Batch]) -> tuple[list[tuple[np.ndarray, ...]], float]:
    """Results of each batch, original first, and the ratio of speeds: the median of rounds in which they take turns."""
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (original, quantised)
    ]
    asked = {entry.name for entry in sessions[0].get_inputs()}  # a ModernBERT has no token_type_ids
    batches = [{name: array for name, array in batch.items() if name in asked} for batch in batches]
    found = [tuple(np.asarray(session.run(None, batch)[0]) for session in sessions) for batch in batches]
    ratios = []
    for _ in range(_ROUNDS):
        seconds = [0.0, 0.0]
        for batch in batches:
            for number, session in enumerate(sessions):
                started = time.perf_counter()
                session.run(None, batch)
                seconds[number] += time.perf_counter() - started
        ratios.append(seconds[0] / seconds[1])
    return found, statistics.median(ratios)


def _judge(outputs: tuple[str, ...], found: list[tuple[np.ndarray, ...]], wanted: list[np.ndarray]) -> str:
    if outputs == (LOGITS,):
        return _judge_fill_mask(found, wanted) if wanted[0].size else _judge_classifier(found)
    # Where the first output is the states of all tokens, [CLS] stands for its text.
    return _judge_encoder([tuple(array[:, 0] if array.ndim == 3 else array for array in pair) for pair in found])


def _judge_fill_mask(found: list[tuple[np.ndarray, ...]], wanted: list[np.ndarray]) -> str:
    total = sum(int((tokens >= 0).sum()) for tokens in wanted)
    right = [
        sum(int((results[number].argmax(-1) == tokens).sum()) for results, tokens in zip(found, wanted, strict=True))
        for number in (0, 1)
    ]
    return f"finds {right[1] / total:.1%} of {total} masked tokens (fp32 {right[0] / total:.1%})"


def _judge_encoder(found: list[tuple[np.ndarray, ...]]) -> str:
    cosines = [(a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)) for a, b in found]
    every = np.concatenate(cosines)
    return f"embeddings of {len(every)} texts have a cosine of {every.mean():.4f} to fp32's (least {every.min():.4f})"


def _judge_classifier(found: list[tuple[np.ndarray, ...]]) -> str:
    same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in found])
    return f"the same label as fp32 for {same.mean():.1%} of {len(same)} texts"

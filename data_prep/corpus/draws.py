"""Which split a document goes to, and how often it is taken: drawn by a hash of its id, so it can be known early."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_prep.config import MAX_WEIGHT, PrepConfig, as_tuple, validation_fraction
from data_prep.contract.command_line import UserError
from data_prep.contract.shell.encodings import AUTO
from data_prep.corpus.documents import CorpusFile
from data_prep.corpus.files import find_corpus_files, place_of

MIN_ROWS = 16
"""Rows either split needs at least: fewer give no meaningful loss."""

_AMPLE_BYTES = 8
"""Bytes that no tokenizer of a usual size leaves to a token on average."""

_HALVINGS = 60
"""Of the interval in which a sampling rate is looked for: draws have 53 bits."""

_ONE_DRAW = "all of a document goes to the same split"


def find_input_files(config: PrepConfig) -> list[CorpusFile]:
    """The files of ``validation_paths``, then those of ``corpus.paths``; one that both name is of the former alone.

    Of equal documents the first is kept: so the corpus loses what the validation split has.

    Raises:
        UserError: as ``find_corpus_files``, or nothing is left to train on.
    """
    corpus, paths = find_corpus_files(config.corpus, output=config.output), as_tuple(config.validation_paths)
    if not paths:
        return corpus
    encoding = config.corpus.encoding if isinstance(config.corpus.encoding, str) else AUTO
    alone = dataclasses.replace(config.corpus, paths=paths, weights=None, encoding=encoding)
    validation = find_corpus_files(alone, output=config.output)
    taken = {place_of(file.path) for file in validation}
    rest = [file for file in corpus if place_of(file.path) not in taken]
    if not rest:
        raise UserError("every file of corpus.paths is one of validation_paths: nothing is left to train on")
    names = {file.name for file in rest}
    found = []
    for file in validation:
        name, number = file.name, 1
        while name in names:
            number += 1
            name = f"{number}//{file.name}"
        names.add(name)
        found.append(dataclasses.replace(file, name=name, validation=True))
    return found + [dataclasses.replace(file, source=file.source + len(paths)) for file in rest]


def document_draw(document_id: str, purpose: str = "") -> float:
    """Uniform in [0, 1): the first 53 bits of the id's sha256, as many as a float holds."""
    digest = hashlib.sha256(f"{purpose}{document_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def draws_of(keys: Sequence[str], draw: Callable[[str], float] = document_draw) -> np.ndarray:
    """[n] f64, the draws of the documents that these are the keys of; pieces of a document have its draw."""
    return np.array([draw(re.sub(r"#\d+$", "", key)) for key in keys], dtype=np.float64)


def stratified_share(documents: int, fraction: float) -> int:
    """How many of so many documents of a source are held out: neither none nor all where there are two."""
    return min(max(1, round(documents * fraction)), documents - 1) if documents > 1 else 0


def weight_draw(document_id: str) -> float:
    """Uniform in [0, 1): what decides between the whole numbers below and above a weight."""
    return document_draw(document_id, "weight:")


def copies_of(document_id: str, weight: float) -> int:
    """How often a document of a file of this weight is taken."""
    copies = int(weight)
    return copies + (weight > copies and weight_draw(document_id) < weight - copies)


def copies_of_draws(draws: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[n] i64, ``copies_of`` documents with these ``weight_draw``, [n] f64, and weights, [n] f64."""
    whole = np.floor(weights)
    return (whole + (draws < weights - whole)).astype(np.int64)


def temperature_weights(sizes: Mapping[int, int], temperature: float) -> dict[int, float]:
    """How often the documents of each source are taken, so that a source of n bytes gets a share of n^(1/temperature).

    The shares are those of XLM (Conneau and Lample 2019, arXiv 1901.07291, section 3.1, alpha = 1/temperature). XLM
    draws documents anew in each epoch. Shards hold them once for all, so the largest source keeps all of its own.

    Args:
        sizes: source (see ``CorpusFile``) -> bytes of its documents.
        temperature: from 1 on.

    Returns:
        Source -> weight, rounded to four digits so that every machine has the same; 1 for the largest source.

    Raises:
        UserError: a source would be taken more than ``MAX_WEIGHT`` times.
    """
    largest = max(sizes.values(), default=0)
    weights = {
        source: round((largest / size) ** (1 - 1 / temperature), 4) if size else 1.0
        for source, size in sorted(sizes.items())
    }
    for number, (source, weight) in enumerate(weights.items(), 1):
        if weight > MAX_WEIGHT:
            raise UserError(
                f"corpus.temperature {temperature:g} takes entry {number} of corpus.paths {weight:,.0f} times, for it "
                f"has {sizes[source]:,} bytes of text and the largest entry {largest:,}: expected at most "
                f"{MAX_WEIGHT:,} times; lower corpus.temperature, or leave the entry out"
            )
    return weights


def sampling_rate(draws: np.ndarray, weights: np.ndarray, sizes: np.ndarray, limit: int) -> float:
    """The largest factor of all weights, at most 1, with which the documents that are taken fit into ``limit``.

    Args:
        draws: [n] f64, ``weight_draw`` of each document.
        weights: [n] f64, of each.
        sizes: [n] i64, bytes of each.
        limit: bytes of all that are taken, copies counted.
    """

    def fits(rate: float) -> bool:
        return int((copies_of_draws(draws, rate * weights) * sizes).sum()) <= limit

    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_draws(files: Sequence[tuple[CorpusFile, int]], config: PrepConfig) -> None:
    """Refuse a corpus of whole .txt files that leaves a split empty: their draws are known before anything is read.

    Args:
        files: each with the bytes of its text.
        config: of the preparation.

    Raises:
        UserError: naming the split, and what would fill it.
    """
    corpus = [(file, size) for file, size in files if not file.validation]
    if config.corpus.txt_documents != "file" or any(file.kind != "txt" for file, _ in corpus):
        return
    if config.validation_split == "stratified":  # it is not by the draws alone
        return
    own_validation, wanted = len(corpus) < len(files), validation_fraction(config)
    draws = sorted((document_draw(file.name), size) for file, size in corpus if copies_of(file.name, file.weight))
    for name, found in (
        ("validation", [draw for draw, _ in draws if draw < wanted]),
        ("train", [draw for draw, _ in draws if draw >= wanted]),
    ):
        if found or (name == "validation" and (own_validation or not wanted)):
            continue
        remedy = "give --corpus.txt_documents paragraph (or line), or more files"
        fraction = _ample_fraction(draws, config.seq_length, filled=name)
        if fraction is not None:
            remedy += f", or --validation_fraction {fraction} in place of {wanted:g}"
        found_there = "1 .txt file" if len(draws) == 1 else f"{len(draws)} .txt files"
        raise UserError(
            f"the {name} split would be empty: the corpus is {found_there}, a file is one document, and {_ONE_DRAW}; "
            f"{remedy}"
        )


def _ample_fraction(draws: Sequence[tuple[float, int]], seq_length: int, filled: str) -> str | None:
    """The fraction nearest to the edge that surely leaves both splits enough text, or None.

    Args:
        draws: (draw, bytes) of each document, rising.
        seq_length: tokens of a row.
        filled: the split that is empty now.
    """
    wanted = MIN_ROWS * seq_length * _AMPLE_BYTES
    below = list(itertools.accumulate(size for _, size in draws))  # bytes of validation, with 1, 2 ... documents
    ample = [k for k in range(1, len(draws)) if below[k - 1] >= wanted and below[-1] - below[k - 1] >= wanted]
    if not ample:
        return None
    k = ample[0] if filled == "validation" else ample[-1]
    fraction = number_between(draws[k - 1][0], draws[k][0])
    return fraction if filled == "train" or float(fraction) <= 0.5 else None


def number_between(low: float, high: float) -> str:
    """The shortest decimal number above ``low`` and up to ``high``, which is above it."""
    for digits in range(1, 17):
        for number in (high, (low + high) / 2):
            text = f"{number:.{digits}g}"
            if low < float(text) <= high:
                return text
    return repr(high)


def more_documents(config: PrepConfig) -> str:
    """What helps where a split has too little text."""
    if config.corpus.txt_documents != "file":
        return f"give more text, in more documents ({_ONE_DRAW})"
    return (
        f"give more text, in more documents ({_ONE_DRAW}, and a .txt file is one unless --corpus.txt_documents is "
        "paragraph or line)"
    )

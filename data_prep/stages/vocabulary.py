"""Corpus -> tokenizer.json: what ``narrowbert-prep vocab`` does."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.config import PrepConfig, tokenizer_path
from data_prep.contract.command_line import UserError
from data_prep.contract.files import check_writable
from data_prep.contract.tokenizer import save_tokenizer, tokenizer_hash
from data_prep.corpus.draws import find_input_files
from data_prep.corpus.reading import read_texts
from data_prep.report.progress import Progress
from data_prep.report.statistics import encodings_of
from data_prep.tokens.losses import notes_on_losses, stripped_marks, unknown_share
from data_prep.tokens.vocabulary import train_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """What one run of ``build_vocabulary`` did."""

    path: str
    """The tokenizer.json."""
    entries: int
    """Entries of the vocabulary."""
    sha256: str
    """Of the file."""
    already_there: bool
    """True when the same file was there before."""
    unknown_share: float
    """Share of the corpus's tokens that are [UNK]."""
    notes: list[str]
    """What it loses of the corpus, a line each."""
    rejects: dict[str, int]
    """Reason -> documents or lines that the vocabulary was not trained on."""
    encodings: dict[str, int]
    """Encoding -> files that were read in it, where it is not UTF-8."""


def build_vocabulary(config: PrepConfig, progress: Progress) -> VocabularySummary:
    """Train a tokenizer on the corpus and write it to ``tokenizer_path(config)``.

    Raises:
        UserError: wrong input, too little text, or the file cannot be written.
    """
    path = tokenizer_path(config)
    check_writable("the folder of the tokenizer", Path(path).parent)
    files = [file for file in find_input_files(config) if not file.validation]
    rejects: Counter[str] = Counter()
    surveys: list[dict[str, Any]] = []

    def surveyed(found: list[dict[str, Any]]) -> None:
        surveys[:] = found

    def texts() -> Iterator[str]:
        progress.start("read", 0, "B")
        rejects.clear()
        for text in read_texts(files, config, rejects, surveyed):
            progress.advance(len(text), 1)
            yield text

    try:
        tokenizer = train_tokenizer(texts, config.vocabulary)
    except UserError as error:
        found = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejects.items()))
        raise UserError(f"{error}{f' (rejected: {found})' if found else ''}") from error
    new = save_tokenizer(tokenizer, path)
    stripped: Counter[str] = Counter()

    def sampled() -> Iterator[str]:
        for text in texts():
            stripped.update(stripped_marks(tokenizer, text))
            yield text

    tokenizer.encode_special_tokens = True
    unknown = unknown_share(tokenizer, sampled())
    return VocabularySummary(
        path=path,
        entries=tokenizer.get_vocab_size(),
        sha256=tokenizer_hash(path),
        already_there=not new,
        unknown_share=unknown,
        notes=notes_on_losses(unknown, {} if config.vocabulary.strip_accents else stripped),
        rejects=dict(rejects),
        encodings=encodings_of(surveys),
    )

"""Counts and histograms of documents, rows and masks."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.corpus.documents import Document, Reject

FERTILITY_LIMIT = 5
"""Tokens per word from which documents share the last bin; text without white space gets there."""

ROW_LENGTH_BINS = 16

_SOURCE_COUNTS = ("read", "not_sampled", "documents", "words", "tokens", "unknown_tokens")

MOST_TOKENS_A_RUN = 4
"""Masked tokens side by side where words are masked, on average over a corpus; English has 1.7, Thai 6."""


def document_statistics(
    *, characters: np.ndarray, words: np.ndarray, tokens: np.ndarray, unknown: int
) -> dict[str, Any]:
    """Counts and histograms of documents.

    Args:
        characters, words, tokens: [documents] of each document; words are runs without white space.
        unknown: tokens that are [UNK], in all documents together.

    Returns:
        Counts, and documents by ``document_length`` (key: the power of two at or below their tokens) and by
        ``fertility`` (key: tokens per word, rounded down to a tenth; the last bin, 5.0, takes all above).
    """
    lengths = tokens[tokens > 0].astype(np.int64)
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # floor(log2) without rounding at the powers
    spoken = words > 0
    tenths = np.minimum(10 * tokens[spoken].astype(np.int64) // words[spoken].astype(np.int64), 10 * FERTILITY_LIMIT)
    return {
        "documents": len(tokens),
        "characters": int(characters.sum()),
        "words": int(words.sum()),
        "tokens": int(tokens.sum()),
        "unknown_tokens": int(unknown),
        "document_length": _histogram(powers, lambda power: str(1 << power)),
        "fertility": _histogram(tenths, lambda tenth: f"{tenth // 10}.{tenth % 10}"),
    }


def mask_statistics(arrays: Mapping[str, np.ndarray], mask_id: int) -> dict[str, Any]:
    """Counts of one chunk's rows and masks; ``arrays`` are the chunk's fields (see ``shards``).

    Returns:
        rows, real and padding tokens, short rows; over all variants the slots (R x K x P), those in use (``masked``),
        how many runs of neighbours these are (``masked_runs``), and what stands in them: [MASK] (``became_mask``),
        another token (``random``) or the original (``kept``); and rows by ``row_length`` (key: the shortest length of
        the bin).
    """
    ids, lengths = arrays["input_ids"], arrays["lengths"].astype(np.int64)
    rows, seq_length = ids.shape
    replacements = arrays["replacement_ids"]
    slots = np.arange(replacements.shape[2])
    used = slots < arrays["num_masked"][..., None]
    positions = arrays["masked_positions"].astype(np.int64)  # rising
    original = np.take_along_axis(ids[:, None, :], positions, axis=2)
    masked = int(used.sum())
    became_mask = int((used & (replacements == mask_id)).sum())
    kept = int((used & (replacements == original)).sum())
    width = -(-seq_length // ROW_LENGTH_BINS)
    return {
        "rows": rows,
        "short_rows": int((lengths < seq_length).sum()),
        "real_tokens": int(lengths.sum()),
        "padding_tokens": int(rows * seq_length - lengths.sum()),
        "slots": int(used.size),
        "masked": masked,
        "masked_runs": masked - int((used[..., 1:] & (np.diff(positions) == 1)).sum()),
        "became_mask": became_mask,
        "random": masked - became_mask - kept,
        "kept": kept,
        "row_length": _histogram((lengths - 1) // width, lambda number: str(number * width + 1)),
    }


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of nested dictionaries of numbers, key by key; a key that is missing counts as 0."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                total[key] = merge([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total


def count_language(counts: dict[str, Any], judged: Document | Reject) -> None:
    """Count a document that the filters have seen in ``counts["languages"]``, if its language is known."""
    if judged.language is None:
        return
    found = counts.setdefault("languages", {}).setdefault(judged.language, {"read": 0, "rejects": {}})
    found["read"] += 1
    if isinstance(judged, Reject):
        found["rejects"][judged.reason] = found["rejects"].get(judged.reason, 0) + 1


def count_tokens_of_language(counts: dict[str, Any], language: str | None, tokens: Mapping[str, int]) -> None:
    """Add what the tokenizer makes of a document to what ``count_language`` has counted."""
    if language is not None:
        found = counts["languages"][language]
        found |= {name: found.get(name, 0) + number for name, number in tokens.items()}


def fertility(counts: Mapping[str, int]) -> str:
    """Tokens a word, of ``tokens`` and ``words``, in words; nothing where no words were counted."""
    return f"{counts['tokens'] / counts['words']:.2f}" if counts.get("words") else ""


def notes_on_tokens(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line on what the tokenizer makes of each source or language.

    Args:
        counts: what to call it -> its ``words``, ``tokens`` and ``unknown_tokens``.
    """
    return [
        f"{name}: {fertility(found)} tokens a word, {found['unknown_tokens'] / found['tokens']:.3%} [UNK]"
        for name, found in counts.items()
        if found.get("tokens")
    ]


def counts_by_source(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a map task says of each source (see ``CorpusFile``): its number -> counts.

    A record that was kept before sources were counted is of one source.
    """
    return record.get("sources") or {"0": {key: record[key] for key in ("read", "not_sampled", "rejects")}}


def source_statistics(
    files: Iterable[tuple[Mapping[str, Any], int]], counts: Mapping[str, Any], weights: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Where the documents of each source went.

    Args:
        files: (survey, source) of the corpus files.
        counts: number of a source -> what the records of map and pack together say of it.
        weights: source -> how often ``corpus.temperature`` takes its documents, if it is given.

    Returns:
        For each entry of ``validation_paths`` (with ``validation``, which is true) and of ``corpus.paths``: its files,
        the name of the first, documents read, not sampled, in the shards, words, tokens and [UNK] of these, each
        document once, rejects (reason -> documents), the weight, if any, documents whose mojibake was ``repaired``,
        documents read in each of the ``encodings`` that are neither UTF-8 nor their file's,
        lines that earlier documents have and that were taken out (``repeated_lines``, if they are),
        and, where languages were identified, for each the documents that the filters saw, their rejects, and words,
        tokens and [UNK] of what they left.
    """
    names: dict[int, list[str]] = {}
    validation: set[int] = set()
    for survey, source in files:
        names.setdefault(source, []).append(survey["name"])
        if survey.get("validation"):
            validation.add(source)
    found = []
    for source in range(max(names, default=-1) + 1):
        here, count = names.get(source, []), counts.get(str(source), {})
        numbers = {key: count.get(key, 0) for key in _SOURCE_COUNTS}
        rejects = dict(sorted(count.get("rejects", {}).items()))
        entry = {"files": len(here), "first_file": here[0] if here else "", **numbers, "rejects": rejects}
        if source in validation:
            entry["validation"] = True
        if source in weights:
            entry["weight"] = weights[source]
        if "repaired" in count:
            entry["repaired"] = count["repaired"]
        if "encodings" in count:
            entry["encodings"] = dict(sorted(count["encodings"].items()))
        if "repeated_lines" in count:
            entry["repeated_lines"] = count["repeated_lines"]
        if "languages" in count:
            entry["languages"] = dict(sorted(count["languages"].items()))
        found.append(entry)
    return found


def encodings_of(surveys: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Encoding -> files that are read in it, where it is not UTF-8; the most frequent first."""
    names = (survey.get("named_encoding", survey.get("encoding")) for survey in surveys)
    return dict(Counter(name for name in names if name not in (None, "utf-8")).most_common())


def notes_on_encodings(files: Mapping[str, int], sources: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """A line for each encoding of ``encodings_of``, and for each of documents in ``source_statistics``."""
    documents = merge(source.get("encodings", {}) for source in sources)
    return [
        f"{count:,} {what}{'s' if count > 1 else ''} read as {name}"
        for counts, what in ((files, "file"), (documents, "document"))
        for name, count in counts.items()
    ]


def notes_on_repairs(documents: int) -> list[str]:
    """A line where mojibake was repaired in so many documents."""
    return [f"{documents:,} document{'s' if documents > 1 else ''} repaired of mojibake"] if documents else []


def notes_on_lines(counts: Mapping[str, int]) -> list[str]:
    """A line on lines that were taken out since earlier documents have them, if there are any.

    Args:
        counts: ``lines``, their ``characters``, and the ``documents`` that they were taken out of.
    """
    if not counts.get("lines"):
        return []
    return [
        f"taken out since earlier documents have them: {counts['lines']:,} lines ({counts['characters']:,} characters) "
        f"of {counts['documents']:,} documents"
    ]


def entry_names(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to call each source of ``source_statistics``, such as 'entry 1 of corpus.paths'."""
    own = sum(source.get("validation", False) for source in sources)  # they come first
    return [
        *(f"entry {number} of validation_paths" for number in range(1, own + 1)),
        *(f"entry {number} of corpus.paths" for number in range(1, len(sources) - own + 1)),
    ]


def notes_on_weights(weights: Mapping[int, float]) -> list[str]:
    """A line on the weights that ``corpus.temperature`` gives, if there are any."""
    if not weights:
        return []
    times = ", ".join(f"entry {number} {weight:g}" for number, (_, weight) in enumerate(sorted(weights.items()), 1))
    return [f"corpus.temperature takes the documents of corpus.paths so many times: {times}"]


def mostly_rejected(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each source of which more than half was left out."""
    lines = []
    for name, source in zip(entry_names(sources), sources, strict=True):
        rejected, read = sum(source["rejects"].values()), source["read"]
        if 2 * rejected > read:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in source["rejects"].items())
            files = f"{source['files']:,} file{'s' if source['files'] > 1 else ''}"
            lines.append(
                f"{name} ({source['first_file']}, {files}): {rejected:,} of {read:,} documents "
                f"are not in the shards ({reasons})"
            )
    return lines


def notes_on_masks(unit: str, rows: Mapping[str, Any]) -> list[str]:
    """A line where whole words are masked and the text does not tell its words apart.

    Thai, Lao or Khmer has no spaces between words. What stands between two spaces is a phrase of some ten tokens, so
    that a row's masks are two or three long runs.
    """
    runs = rows.get("masked_runs", 0)
    if unit != "word" or rows["masked"] <= MOST_TOKENS_A_RUN * runs or not runs:
        return []
    return [
        f"mask.unit word: the masked words have {rows['masked'] / runs:.1f} tokens on average, so the text has few "
        "spaces between words; --mask.unit span (or token) spreads the masks"
    ]


def _histogram(bins: np.ndarray, name: Callable[[int], str]) -> dict[str, int]:
    values, counts = np.unique(bins, return_counts=True)
    return {name(int(value)): int(count) for value, count in zip(values, counts, strict=True)}

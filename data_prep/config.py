"""The configuration of ``narrowbert-prep vocab`` and ``narrowbert-prep shards``. Imports no heavy library."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from data_prep.contract.command_line import UserError
from data_prep.contract.files import is_empty_working_folder
from data_prep.contract.redaction import redact_urls
from data_prep.contract.shell.encodings import AUTO, codec_of
from data_prep.contract.shell.paths import PATH
from data_prep.filter_config import FiltersConfig, check_filters

MAX_WEIGHT = 1_000
MAX_TEMPERATURE = 1_000
MAX_ROWS_PER_SHARD = 2**31
MAX_NAME_BYTES = 200  # file systems take 255, and the names beside it are longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where the text comes from."""

    paths: tuple[str, ...] | str = dataclasses.field(default=(), metadata=PATH)
    """A file, glob, folder or fsspec URL, or a list of them: .txt .jsonl .parquet .csv .tsv .warc .wet .html .json
    .arrow .mds, plain, .gz, .zst, .xz or .bz2; the word 'builtin', or nothing, is the English documentation that every
    Python install carries."""
    weights: tuple[float, ...] | None = None
    """One number for each entry of paths: 2 takes its documents twice, 0.5 takes half of them, drawn by a hash
    of their ids."""
    temperature: float | None = None
    """Evens out the sizes of the entries of paths, in place of weights: an entry of n bytes of text is taken in
    proportion to n^(1/temperature), for vocabulary and rows. 1 leaves the sizes as they are, 2 is alpha 0.5 of XLM
    (Conneau and Lample 2019, section 3.1). The largest entry is taken once, smaller ones are repeated."""
    text_field: tuple[str, ...] | str = "text"
    """The field or column that holds the text in .jsonl, .json, .parquet, .arrow, .mds, .csv and .tsv; body.text is a
    field within body. Of a list, such as [title, body.text], the texts are joined by a blank line; those that are empty
    or null are left out, and a record that lacks one of the fields is rejected."""
    url_field: str | None = None
    """The field or column with the URL of a document, which filters.url_blocklist looks at; .warc and .wet have theirs
    without it."""
    score_field: str | None = None
    """The field or column with a number, which filters.score looks at."""
    csv_delimiter: str | None = None
    """The character between the fields of .csv and .tsv, or the word 'tab'; when not given, the first of the usual ones
    with which the header has the text_field."""
    csv_quoting: Literal["minimal", "none"] | None = None
    """minimal: a field of .csv and .tsv may stand in quotes and then hold delimiters and line ends (RFC 4180); none:
    each line is a record and a quote is text. When not given, minimal for .csv, and for .tsv as its beginning shows."""
    encoding: tuple[str, ...] | str = AUTO
    """What the files' bytes are: 'auto', UTF-8 or what they show to be, or the name of an encoding such as cp1250;
    one for all, or a list with one for each entry of paths. A byte order mark in a file is stronger."""
    errors: Literal["strict", "replace"] = "strict"
    """What bytes cost that cannot be decoded: 'strict' their document, which is rejected; 'replace' themselves, and
    U+FFFD stands in their place."""
    txt_documents: Literal["file", "line", "paragraph"] = "file"
    """What one document is in a .txt file: the whole file, each line, or what stands between blank lines."""
    builtin_max_bytes: int = 12_000_000
    """Size in bytes at which the built-in corpus stops; your own files are always read whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """What happens to a text before it is tokenized. Encodings, Unicode form and control characters are always
    put right; whatever is rejected is listed in rejects.jsonl.gz with its reason."""

    min_characters: int = 1
    """Shorter documents are rejected; white space at the ends does not count."""
    max_characters: int = 1_000_000
    """Longer documents are split, at white space where there is some, into several documents."""
    repair_mojibake: bool = False
    """Put right lines that were decoded in a wrong encoding before they got into the corpus (donâ€™t), by the library
    ftfy, a megabyte of accented text a second; needs the extra 'mojibake'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """Which documents are dropped because their text occurs elsewhere; all are listed in rejects.jsonl.gz."""

    exact: bool = True
    """Drop documents whose text, white space aside, an earlier document has already."""
    near_threshold: float | None = None
    """Drop documents whose estimated Jaccard similarity (5-word shingles, MinHash) to an earlier one reaches
    this, for example 0.8; needs the extra 'dedup'."""
    near_characters: int | None = None
    """Compare shingles of so many characters, for example 5 with near_threshold 0.5: finds copies with letters changed
    all over, such as other scans of a page, in every script. Not for texts of more than 100,000 characters, which share
    such shingles by chance. When not given, shingles of 5 words."""
    evaluation_paths: tuple[str, ...] | str = dataclasses.field(default=(), metadata=PATH)
    """Evaluation sets, in any format of corpus.paths: documents that share an n-gram of words with them are
    dropped."""
    evaluation_ngram: int = 13
    """Words of such an n-gram; two Chinese or Japanese characters count as one word, and so do three letters of
    Thai, Lao, Khmer or Burmese."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """How ``vocab`` trains a tokenizer."""

    model: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    """WordPiece as BERT, byte-level BPE as GPT-2 and RoBERTa, or Unigram as ALBERT."""
    size: int = 30_522
    """Entries at most, the five special tokens included; a small corpus gives fewer."""
    lowercase: bool = True
    """Fold case, as uncased BERT does."""
    strip_accents: bool | None = None
    """Strip accents and vowel signs of every script; when not given, lowercase strips accents of Latin, Greek and
    Cyrillic letters alone."""
    min_frequency: int = 2
    """A pair of pieces seen less often than this is not merged (wordpiece and bpe)."""
    alphabet_size: int | None = None
    """The most frequent characters that become pieces; any other character makes its word [UNK] (wordpiece and
    unigram; the alphabet of bpe is the 256 bytes). When not given, 1,000, or as many more as alphabet_coverage needs
    and a quarter of size has room for."""
    alphabet_coverage: float = 0.9995
    """Share of the corpus's characters that are in the alphabet, where alphabet_size is not given."""
    sample_bytes: int | None = None
    """Cleaned text in bytes that is trained on at most: documents drawn by a hash of their ids, of each source in
    proportion to its size and weight. When not given, all text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How documents become rows."""

    mode: Literal["concat", "isolated", "document"] = "concat"
    """concat: rows from one stream of all documents; isolated: pieces of documents, each with its own [CLS] and
    [SEP], best-fit into rows and never attending to each other when document_attention is isolated; document: no row
    holds two documents."""
    short_seq_prob: float = 0.0
    """Share of the rows that are cut short at a random length (concat and document)."""
    drop_remainder_below: int = 0
    """Ends of documents with fewer tokens than this are dropped and counted (isolated and document)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tokens are masked, and what stands in their place."""

    probability: float = 0.15
    """Share of a row's seq_length that is masked."""
    per_row: int | None = None
    """Masked tokens of a full row; when not given, probability x seq_length, rounded."""
    variants: int = 10
    """Independent maskings stored for every row; epoch e trains on variant e modulo this."""
    unit: Literal["token", "word", "span", "ngram"] = "token"
    """What is drawn: single tokens, whole words, spans of words of geometric length (SpanBERT), or n-grams of
    words with probability 1/n (Megatron-LM)."""
    span_p: float = 0.2
    """Parameter of the geometric distribution of span lengths."""
    span_max_words: int = 10
    """Longest span, in words."""
    ngram_max_words: int = 3
    """Longest n-gram, in words."""
    mask_fraction: float = 0.8
    """Share of the chosen tokens that become [MASK]."""
    random_fraction: float = 0.1
    """Share that becomes a random token; the rest stays."""
    stored: bool = True
    """Whether shards hold the masks. Without them they take a quarter of the bytes, and the reader draws the same masks
    when a row is read; plain WebDataset then finds rows without masks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepConfig:
    """Everything that decides what is in a shard folder, and where it goes."""

    output: str = dataclasses.field(metadata=PATH)
    """The shard folder to make."""
    tokenizer: str | None = dataclasses.field(default=None, metadata=PATH)
    """tokenizer.json that ``vocab`` writes and ``shards`` reads, that of a BERT or RoBERTa, or the vocab.txt of a BERT
    (cased or not as vocabulary.lowercase says); when not given, OUTPUT.tokenizer.json."""
    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    """Where the text comes from."""
    cleaning: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What is rejected or split."""
    filters: FiltersConfig = dataclasses.field(default_factory=FiltersConfig)
    """By which rules documents are dropped or changed."""
    duplicates: DuplicatesConfig = dataclasses.field(default_factory=DuplicatesConfig)
    """What is dropped because it occurs elsewhere."""
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=VocabularyConfig)
    """How ``vocab`` trains."""
    seq_length: int = 128
    """Tokens per row, [CLS] and [SEP] included."""
    packing: PackingConfig = dataclasses.field(default_factory=PackingConfig)
    """How documents become rows."""
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    """Which tokens are masked."""
    validation_paths: tuple[str, ...] | str = dataclasses.field(default=(), metadata=PATH)
    """Files of any format of corpus.paths whose documents are the validation split. None of them is trained on:
    documents of corpus.paths with the same text are dropped."""
    validation_fraction: float | None = None
    """Share of the documents of corpus.paths, picked by a hash of their ids, that goes to the validation split; 0:
    none. When not given, 0.05, or 0 with validation_paths. Without either, training evaluates nothing."""
    validation_split: Literal["hash", "stratified"] = "hash"
    """hash: each document by itself, so that an entry of corpus.paths gets its share up to chance, a small one maybe
    nothing; stratified: that share of the documents of each entry, rounded, and at least one of two."""
    seed: int = 0
    """Decides the order of the rows and the masks."""
    chunk_rows: int | None = None
    """Rows per chunk, the unit of reading; when not given, 1024 up to seq_length 128 and 256 above."""
    rows_per_shard: int = 65_536
    """Rows per tar file; a multiple of chunk_rows."""
    write_text: bool = False
    """Write the documents that are in the shards, cleaned and without duplicates, as parquet files into OUTPUT/text:
    columns id, split and text."""
    keep_documents: bool = False
    """Keep the tokens of all documents in OUTPUT/documents: `repack` and `append` then tokenize nothing again. Needs
    about two bytes a token, besides the shards."""
    num_workers: int = 0
    """Processes; 0 is one for each usable core. The shards are the same bytes for any number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemaskConfig:
    """What ``remask`` can change; whatever is not given is as in the shard folder that it reads."""

    output: str = dataclasses.field(metadata=PATH)
    """The shard folder to make."""
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    """Which tokens are masked."""
    seed: int = 0
    """Decides the masks; the rows keep their order."""
    num_workers: int = 0
    """Processes; 0 is one for each usable core. The shards are the same bytes for any number."""


def check_config(config: PrepConfig) -> None:
    """Raise UserError for values that make no sense, alone or together."""
    alphabet, characters = config.vocabulary.alphabet_size, config.duplicates.near_characters
    sample_bytes = config.vocabulary.sample_bytes
    limits = (
        ("seq_length", config.seq_length, 8, 32_768),
        ("vocabulary.size", config.vocabulary.size, 32, 2**31),
        ("vocabulary.min_frequency", config.vocabulary.min_frequency, 1, 2**31),
        ("vocabulary.alphabet_size", 1 if alphabet is None else alphabet, 1, 2**21),
        ("vocabulary.sample_bytes", 1_000 if sample_bytes is None else sample_bytes, 1_000, 2**63 - 1),
        ("corpus.builtin_max_bytes", config.corpus.builtin_max_bytes, 1_000, 2**40),
        ("cleaning.min_characters", config.cleaning.min_characters, 1, 2**31),
        ("cleaning.max_characters", config.cleaning.max_characters, 1_000, 16_000_000),
        ("duplicates.near_characters", 2 if characters is None else characters, 2, 100),
        ("duplicates.evaluation_ngram", config.duplicates.evaluation_ngram, 2, 100),
        ("packing.drop_remainder_below", config.packing.drop_remainder_below, 0, config.seq_length - 2),
        ("mask.variants", config.mask.variants, 1, 1_000),
        ("mask.span_max_words", config.mask.span_max_words, 1, 1_000),
        ("mask.ngram_max_words", config.mask.ngram_max_words, 1, 1_000),
        ("seed", config.seed, 0, 2**63 - 1),
        ("rows_per_shard", config.rows_per_shard, 1, MAX_ROWS_PER_SHARD),
        ("chunk_rows", chunk_rows(config), 1, 2**20),
        ("num_workers", config.num_workers, 0, 1_024),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: expected {low} to {high}")
    _check_shares(config)
    _check_output(config.output)
    check_filters(config.filters)
    if config.filters.score.enabled and not config.corpus.score_field:
        raise UserError("filters.score.enabled needs corpus.score_field: name the field with the score")
    if config.cleaning.min_characters > config.cleaning.max_characters:
        raise UserError(
            f"cleaning.min_characters {config.cleaning.min_characters} is more than cleaning.max_characters "
            f"{config.cleaning.max_characters}: no document could be kept"
        )
    if not 1 <= masked_per_row(config) <= config.seq_length - 2:
        raise UserError(
            f"{masked_per_row(config)} masked tokens a row of {config.seq_length}: expected 1 to "
            f"{config.seq_length - 2}; set mask.per_row or mask.probability"
        )
    _check_weights(config.corpus)
    encoding_of_entries(config.corpus)
    _check_fields(config.corpus)
    if config.packing.short_seq_prob and config.packing.mode == "isolated":
        raise UserError("packing.short_seq_prob needs packing.mode concat or document: isolated rows are best-fit")
    if config.packing.drop_remainder_below and config.packing.mode == "concat":
        raise UserError(
            "packing.drop_remainder_below needs packing.mode isolated or document: concat has no remainders"
        )
    if config.rows_per_shard % chunk_rows(config):
        whole = round(config.rows_per_shard / chunk_rows(config))
        nearest = min(max(1, whole), MAX_ROWS_PER_SHARD // chunk_rows(config)) * chunk_rows(config)
        raise UserError(
            f"rows_per_shard is {config.rows_per_shard}, which chunk_rows {chunk_rows(config)} does not "
            f"divide: the nearest that fits is {nearest}"
        )


def csv_delimiter(corpus: CorpusConfig) -> str | None:
    """The character that ``corpus.csv_delimiter`` names, if any."""
    return {"tab": "\t", "\\t": "\t"}.get(corpus.csv_delimiter or "", corpus.csv_delimiter)


def _check_fields(corpus: CorpusConfig) -> None:
    if not as_tuple(corpus.text_field) or not all(as_tuple(corpus.text_field)):
        raise UserError("corpus.text_field names no field: give the name of one, such as text, or a list of names")
    delimiter = csv_delimiter(corpus)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0' or not delimiter.isascii()):
        raise UserError(
            f"corpus.csv_delimiter is {corpus.csv_delimiter!r}: give one ASCII character other than a quote or a line "
            "end, such as ';', or the word tab"
        )


def _check_weights(corpus: CorpusConfig) -> None:
    weights, paths = corpus.weights, as_tuple(corpus.paths)
    if corpus.temperature is not None:
        if not 1 <= corpus.temperature <= MAX_TEMPERATURE:
            raise UserError(f"corpus.temperature is {corpus.temperature}: expected 1 to {MAX_TEMPERATURE}")
        if weights is not None:
            raise UserError(
                "corpus.weights and corpus.temperature both say how often documents are taken: give one of them"
            )
    if weights is None:
        return
    if len(weights) != len(paths) or not all(0 <= weight <= MAX_WEIGHT for weight in weights) or not max(weights) > 0:
        raise UserError(
            f"corpus.weights {list(weights)} for {len(paths)} corpus.paths: give one number from 0 to {MAX_WEIGHT} for "
            "each, not all of them 0"
        )


def encoding_of_entries(corpus: CorpusConfig) -> tuple[str, ...]:
    """Of each entry of ``corpus.paths`` its encoding, as ``codec_of`` gives it, or 'auto'.

    Raises:
        UserError: a name is none of an encoding, or there are not as many as entries.
    """
    entries = len(as_tuple(corpus.paths)) or 1
    names = (corpus.encoding,) * entries if isinstance(corpus.encoding, str) else corpus.encoding
    if len(names) != entries:
        raise UserError(
            f"corpus.encoding {list(names)} for {entries} corpus.paths: give one name, or one for each ('{AUTO}' where "
            "it has to be found out)"
        )
    codecs = [AUTO if name == AUTO else codec_of(name) for name in names]
    for name, codec in zip(names, codecs, strict=True):
        if codec is None:
            raise UserError(
                f"corpus.encoding '{name}' is no encoding that Python knows: give '{AUTO}', or a name such as cp1250, "
                "iso8859-2, koi8-r, big5 or utf-16"
            )
    return tuple(codec for codec in codecs if codec is not None)


def _check_output(output: str) -> None:
    if "://" in output:
        raise UserError(
            f"--output {redact_urls(output)}: shards are made in a folder, whose renames keep them whole; make them "
            "there, then copy them with narrowbert-prep upload FOLDER URL"
        )
    name = Path(output).name
    if name in ("", ".."):
        raise UserError(f"--output '{output}' names no folder that could be made: give one such as shards/mine")
    if "\0" in output or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise UserError(f"--output {output[:80]!r} is no name for a folder: give at most {MAX_NAME_BYTES} bytes")
    if is_empty_working_folder(Path(output)):
        raise UserError(
            f"--output {output} is the folder that you stand in, and would be replaced: name another, such as "
            f"{output.rstrip('/')}/shards"
        )


def _check_shares(config: PrepConfig) -> None:
    inside = (
        ("vocabulary.alphabet_coverage", config.vocabulary.alphabet_coverage),
        ("mask.probability", config.mask.probability),
        ("mask.span_p", config.mask.span_p),
    )
    for name, value in inside:
        if not 0 < value < 1:
            raise UserError(f"{name} is {value}: expected more than 0, less than 1")
    if not 0 <= validation_fraction(config) < 1:
        raise UserError(f"validation_fraction is {config.validation_fraction}: expected 0 or more, less than 1")
    if config.validation_split == "stratified" and not validation_fraction(config):
        raise UserError("validation_split stratified needs a share to hold out: give a validation_fraction above 0")
    near = config.duplicates.near_threshold
    for name, value in (
        ("mask.mask_fraction", config.mask.mask_fraction),
        ("mask.random_fraction", config.mask.random_fraction),
        ("mask.mask_fraction + mask.random_fraction", config.mask.mask_fraction + config.mask.random_fraction),
        ("packing.short_seq_prob", config.packing.short_seq_prob),
    ):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}: expected 0 to 1")
    if near is not None and not 0 < near <= 1:
        raise UserError(f"duplicates.near_threshold is {near}: expected more than 0, at most 1")
    if near is None and config.duplicates.near_characters is not None:
        raise UserError("duplicates.near_characters needs duplicates.near_threshold: give one, such as 0.5")


def as_tuple(paths: tuple[str, ...] | str) -> tuple[str, ...]:
    """One path or several, as several."""
    return (paths,) if isinstance(paths, str) else tuple(paths)


def masked_per_row(config: PrepConfig) -> int:
    """P, the masked tokens of a full row."""
    if config.mask.per_row is not None:
        return config.mask.per_row
    return round(config.mask.probability * config.seq_length)


def validation_fraction(config: PrepConfig) -> float:
    """Share of the documents of the corpus that goes to the validation split, with the default resolved."""
    if config.validation_fraction is not None:
        return config.validation_fraction
    return 0.0 if as_tuple(config.validation_paths) else 0.05


def chunk_rows(config: PrepConfig) -> int:
    """Rows per chunk, with the default resolved."""
    if config.chunk_rows is not None:
        return config.chunk_rows
    return default_chunk_rows(config.seq_length)


def default_chunk_rows(seq_length: int) -> int:
    """Rows per chunk where nothing else is asked for."""
    return 1024 if seq_length <= 128 else 256


def tokenizer_path(config: PrepConfig) -> str:
    """Where ``vocab`` writes and ``shards`` reads, with the default resolved."""
    return config.tokenizer or f"{config.output.rstrip('/')}.tokenizer.json"

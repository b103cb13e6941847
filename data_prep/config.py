"""What `narrowbert-prep vocab` and `narrowbert-prep shards` can be told. Imports no heavy library."""

from dataclasses import dataclass, field

from data_prep.command_line import UserError


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where the text comes from."""

    paths: tuple[str, ...] | str = ()
    """A file, glob or folder, or a list of them: .txt (one document a file) and .jsonl (one a line), plain
    or .gz; the word 'builtin', or nothing, is the English documentation that every Python install carries"""
    text_field: str = "text"
    """The field of a JSON line that holds the text"""
    builtin_max_bytes: int = 12_000_000
    """Size in bytes at which the built-in corpus stops; your own files are always read whole"""


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """How `vocab` trains a WordPiece vocabulary."""

    size: int = 30_522
    """Entries at most, the five special tokens included; a small corpus gives fewer"""
    lowercase: bool = True
    """Fold case and strip accents, as uncased BERT does"""
    min_frequency: int = 2
    """A pair of pieces seen less often than this is not merged"""
    alphabet_size: int = 1_000
    """The most frequent characters that become pieces; any other character makes its word [UNK]"""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tokens are masked: of the chosen ones 80% become [MASK], 10% a random token, 10% stay."""

    probability: float = 0.15
    """Share of a row's seq_length that is masked"""
    per_row: int | None = None
    """Masked tokens of a full row; when not given, probability x seq_length, rounded"""
    variants: int = 10
    """Independent maskings stored for every row; epoch e trains on variant e modulo this"""


@dataclass(frozen=True, kw_only=True)
class PrepConfig:
    """Everything that decides what is in a shard folder, and where it goes."""

    output: str
    """The shard folder to make"""
    tokenizer: str | None = None
    """tokenizer.json that `vocab` writes and `shards` reads; when not given, OUTPUT.tokenizer.json"""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Where the text comes from"""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """How `vocab` trains"""
    seq_length: int = 128
    """Tokens a row, [CLS] and [SEP] included"""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which tokens are masked"""
    validation_fraction: float = 0.05
    """Share of the documents, picked by a hash of their ids, that goes to the validation split"""
    seed: int = 0
    """Decides the order of the rows and the masks"""
    chunk_rows: int | None = None
    """Rows a chunk, the unit of reading; when not given, 1024 up to seq_length 128 and 256 above"""
    rows_per_shard: int = 65_536
    """Rows a tar file; a multiple of chunk_rows"""
    num_workers: int = 0
    """Processes; 0 is one for each usable core. The shards are the same bytes for any number"""


def check(config: PrepConfig) -> None:
    """Raise UserError for values that make no sense, alone or together."""
    limits = (
        ("seq_length", config.seq_length, 8, 32_768),
        ("vocabulary.size", config.vocabulary.size, 32, 2**31),
        ("vocabulary.min_frequency", config.vocabulary.min_frequency, 1, 2**31),
        ("vocabulary.alphabet_size", config.vocabulary.alphabet_size, 1, 2**21),
        ("corpus.builtin_max_bytes", config.corpus.builtin_max_bytes, 1_000, 2**40),
        ("mask.variants", config.mask.variants, 1, 1_000),
        ("seed", config.seed, 0, 2**63 - 1),
        ("rows_per_shard", config.rows_per_shard, 1, 2**31),
        ("chunk_rows", chunk_rows(config), 1, 2**20),
        ("num_workers", config.num_workers, 0, 1_024),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: expected {low} to {high}")
    if not 0 < config.mask.probability < 1:
        raise UserError(f"mask.probability is {config.mask.probability}: expected more than 0, less than 1")
    if not 0 < config.validation_fraction < 1:
        raise UserError(f"validation_fraction is {config.validation_fraction}: expected more than 0, less than 1")
    if not 1 <= masked_per_row(config) <= config.seq_length - 2:
        raise UserError(
            f"{masked_per_row(config)} masked tokens a row of {config.seq_length}: expected 1 to "
            f"{config.seq_length - 2}; set mask.per_row or mask.probability"
        )
    if config.rows_per_shard % chunk_rows(config):
        nearest = max(1, round(config.rows_per_shard / chunk_rows(config))) * chunk_rows(config)
        raise UserError(
            f"rows_per_shard is {config.rows_per_shard}, which chunk_rows {chunk_rows(config)} does not "
            f"divide: the nearest that fits is {nearest}"
        )


def masked_per_row(config: PrepConfig) -> int:
    """P, the masked tokens of a full row."""
    if config.mask.per_row is not None:
        return config.mask.per_row
    return round(config.mask.probability * config.seq_length)


def chunk_rows(config: PrepConfig) -> int:
    """Rows a chunk, with the default resolved."""
    if config.chunk_rows is not None:
        return config.chunk_rows
    return 1024 if config.seq_length <= 128 else 256


def tokenizer_path(config: PrepConfig) -> str:
    """Where `vocab` writes and `shards` reads, with the default resolved."""
    return config.tokenizer or f"{config.output.rstrip('/')}.tokenizer.json"

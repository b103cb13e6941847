"""What reading a corpus gives: documents, and rejects with their reasons."""

import codecs
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from data_prep.config import CleaningConfig
from data_prep.contract.shell.encodings import AUTO
from data_prep.corpus.cleaning import clean, cut_text
from data_prep.corpus.mojibake import repaired

Kind = Literal["txt", "jsonl", "parquet", "csv", "tsv", "warc", "html", "json", "arrow", "mds", "builtin"]

Compression = Literal["gzip", "zstd", "xz", "bzip2"] | None

SAMPLE_CHARACTERS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text of the corpus, or a piece of one, cleaned."""

    id: str
    """Stable and independent of where the corpus lies: name of the file, then line, row or record from 1;
    of a record of .warc also when it was fetched and from where."""
    text: str
    """The text: NFC, \\n line ends, no white space at its ends."""
    part: int = 0
    """Number of the piece, where the text is longer than a document may be."""
    language: str | None = None
    """Its code, where a filter has identified it."""
    url: str | None = None
    """Where it was found, if its record says so."""
    score: float | None = None
    """The number in ``corpus.score_field``, if there is one."""
    repaired: bool = False
    """Whether its mojibake was repaired."""
    encoding: str | None = None
    """What its bytes were in, where that is neither UTF-8 nor what was found or named for the whole file."""

    @property
    def key(self) -> str:
        """The id of the piece."""
        return f"{self.id}#{self.part}" if self.part else self.id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reject:
    """A text that does not become a document, or a part of a file that cannot be read."""

    id: str
    """As of a document."""
    reason: str
    """One of a small number of words, for counting."""
    detail: str
    """What was found; names no path of this machine."""
    sample: str
    """At most 1,000 characters from its beginning."""
    score: float | None = None
    """What a filter measured, if it was a number."""
    language: str | None = None
    """As of a document."""

    def as_dict(self) -> dict[str, str | float]:
        """As ``rejects.jsonl.gz`` has it: what there is."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """One file of the corpus, or the built-in corpus."""

    name: str
    """Relative to the folder or the fixed part of the glob that found it; 'builtin'. Where files from different
    places share a name, the second is '2//name', the third '3//name'."""
    path: str | None
    """Where it is: a local path or a URL; None for the built-in corpus."""
    weight: float
    """How often its documents are taken."""
    kind: Kind
    """Format, as the suffix says."""
    compression: Compression
    """As the suffix says."""
    size: int | None = None
    """Bytes of the file, where the listing that found it says so."""
    source: int = 0
    """Number of the entry of ``corpus.paths`` that found it, from 0; entries of ``validation_paths`` come before."""
    version: str | None = None
    """What tells it from a later one at the same place, such as an ETag, where the listing says so."""
    encoding: str = AUTO
    """Of its text, as ``codec_of`` gives it, or ``AUTO``."""
    validation: bool = False
    """Whether its documents are the validation split."""
    errors: str = "strict"
    """What a text with bytes that cannot be decoded is: ``CorpusConfig.errors``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partition:
    """A share of one file. A text belongs to the partition that its first byte lies in."""

    index: int
    """Number among all partitions."""
    file: int
    """Number of the file."""
    begin: int
    """First unit: a byte of the decompressed text, a row group of .parquet, a record batch of .arrow, a sample of
    .mds; files that are one document each and the built-in corpus have one unit."""
    end: int
    """First unit behind it."""
    lines_before: int | None = None
    """Line ends before ``begin``, if known; else they are counted."""


def sample(content: str | bytes) -> str:
    """The beginning of a rejected text, always encodable."""
    if isinstance(content, bytes):
        try:  # the last character may be cut
            content = codecs.getincrementaldecoder("utf-8")().decode(content[: 4 * SAMPLE_CHARACTERS])
        except UnicodeDecodeError:
            content = content[:SAMPLE_CHARACTERS].decode("ascii", "backslashreplace")
    content = content[:SAMPLE_CHARACTERS]
    return content.encode("utf-8", "backslashreplace").decode()[:SAMPLE_CHARACTERS]


def clean_documents(
    document_id: str, texts: Iterable[str | Reject], config: CleaningConfig
) -> Iterator[Document | Reject]:
    """The documents of one text that comes in consecutive stretches; a stretch may be a reject."""
    first: _Piece | None = None  # kept back until it is known whether there is more
    raw_sample = ""
    part = 0
    rejected = False
    for text in texts:
        if isinstance(text, Reject):
            rejected = True
            yield text
            continue
        raw_sample = raw_sample or text[:SAMPLE_CHARACTERS]
        for piece in _clean_pieces(text, config):
            if part == 0 and first is None:
                first = piece
                continue
            if part == 0 and first is not None:
                yield Document(id=document_id, text=first.text, repaired=first.repaired)
            part += 1
            yield Document(id=document_id, text=piece.text, repaired=piece.repaired, part=part)
    if part == 0 and first is not None:
        if len(first.text) >= config.min_characters or rejected:
            yield Document(id=document_id, text=first.text, repaired=first.repaired)
        else:
            detail = f"{len(first.text)} characters, cleaning.min_characters is {config.min_characters}"
            yield Reject(id=document_id, reason="too_short", detail=detail, sample=sample(first.text))
    elif first is None and not rejected:
        yield Reject(
            id=document_id, reason="empty", detail="white space and control characters only", sample=sample(raw_sample)
        )


def whole_document(document_id: str, text: str, config: CleaningConfig) -> Iterator[Document | Reject]:
    """The documents of one text."""
    if len(text) <= config.max_characters and not config.repair_mojibake:  # the same as below, faster
        cleaned = clean(text).strip()
        if config.min_characters <= len(cleaned) <= config.max_characters:
            yield Document(id=document_id, text=cleaned)
            return
    yield from clean_documents(document_id, (text,), config)


class _Piece(NamedTuple):
    text: str
    repaired: bool


def _clean_pieces(text: str, config: CleaningConfig) -> Iterator[_Piece]:
    """Cleaned pieces of a text, none of them empty or longer than ``cleaning.max_characters``."""
    for piece in cut_text(text, config.max_characters):
        plain = repaired(piece) if config.repair_mojibake else piece
        cleaned = clean(plain).strip()
        # NFC can lengthen a text.
        parts = [cleaned] if len(cleaned) <= config.max_characters else cut_text(cleaned, config.max_characters)
        yield from (_Piece(part.strip(), plain != piece) for part in parts if part.strip())

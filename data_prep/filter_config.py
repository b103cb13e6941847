"""The section ``filters`` of the configuration: rules that published corpora were made by. All are off by default."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.shell.paths import PATH

GOPHER_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Rae et al. 2021, appendix A.1.1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherQualityConfig:
    """The quality rules of MassiveText (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1). A limit that is null is
    not looked at."""

    enabled: bool = False
    """Whether the rules are looked at."""
    min_words: int | None = 50
    """Fewest words; signs are not counted."""
    max_words: int | None = 100_000
    """Most words."""
    min_mean_word_length: float | None = 3
    """Least mean length of words, in characters."""
    max_mean_word_length: float | None = 10
    """Greatest mean length."""
    max_symbol_ratio: float | None = 0.1
    """Most '#' a word, and most ellipses a word."""
    max_bullet_lines: float | None = 0.9
    """Greatest share of lines that begin with a bullet or a dash."""
    max_ellipsis_lines: float | None = 0.3
    """Greatest share of lines that end with an ellipsis."""
    min_alphabetic_words: float | None = 0.8
    """Least share of words, signs counted, that have a letter."""
    min_stop_words: int | None = 2
    """Fewest different stop words."""
    stop_words: tuple[str, ...] = GOPHER_STOP_WORDS
    """The stop words, of one language."""


HASHED = "_sha256"
"""What is added to the key of a file where its hash stands in its place."""

SHORT_NGRAMS, LONG_NGRAMS = range(2, 5), range(5, 11)
"""Words of the n-grams of Rae et al. 2021, table A1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UrlBlocklistConfig:
    """Lists of blocked sites and pages, one a line; lines that begin with # are left out. A document's URL is that of
    its record in .warc and .wet, or stands in corpus.url_field; without one it passes."""

    enabled: bool = False
    """Whether they are looked at."""
    domains: str | None = dataclasses.field(default=None, metadata=PATH)
    """A file of domains such as example.com, each with its subdomains."""
    urls: str | None = dataclasses.field(default=None, metadata=PATH)
    """A file of URLs; scheme, www. and a slash at the end do not count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """The number in corpus.score_field, such as FineWeb-Edu's int_score; a record without one is dropped."""

    enabled: bool = False
    """Whether it is looked at."""
    min_score: float | None = None
    """Least score of a document that is kept; FineWeb-Edu's is 3."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """fastText's identification of 176 languages by the beginning of a document; needs the extra 'language'."""

    enabled: bool = False
    """Whether languages are identified; the report then counts documents and rejects by language."""
    languages: tuple[str, ...] = ()
    """Codes of the languages that are kept, such as [en, de]; nothing keeps all."""
    min_score: float = 0.65
    """Least probability of such a language; FineWeb's limit (Penedo et al. 2024, section 3.3)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherRepetitionConfig:
    """The repetition rules of MassiveText (Rae et al. 2021, table A1). A limit that is null is not looked at."""

    enabled: bool = False
    """Whether the rules are looked at."""
    lines: float | None = 0.3
    """Greatest share of lines that repeat an earlier one."""
    paragraphs: float | None = 0.3
    """Greatest share of paragraphs that do."""
    line_characters: float | None = 0.2
    """Greatest share of characters in such lines."""
    paragraph_characters: float | None = 0.2
    """Greatest share of characters in such paragraphs."""
    top_ngrams: tuple[float, ...] | None = (0.2, 0.18, 0.16)
    """Greatest share of characters in the most frequent 2-gram, 3-gram and 4-gram of words."""
    repeated_ngrams: tuple[float, ...] | None = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    """Greatest share of characters in 5-grams, 6-grams and so on to 10-grams that occur before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class C4Config:
    """The rules of C4 (Raffel et al. 2020, section 2.2, and the authors' code). They drop lines and documents, and
    always marks of citations, lines about JavaScript, cookies or terms of use, and documents with 'lorem ipsum'."""

    enabled: bool = False
    """Whether the rules are looked at."""
    terminal_punctuation: bool = True
    """Keep only lines that end with a stop, a question or exclamation mark, or a quotation mark."""
    min_words_per_line: int | None = 3
    """Lines of fewer words are dropped."""
    max_word_length: int | None = 1_000
    """Lines with a longer word are dropped."""
    min_sentences: int | None = 5
    """Documents that keep fewer sentences are dropped."""
    curly_brackets: bool = True
    """Drop documents with a curly bracket, which are mostly code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineWebConfig:
    """The rules that FineWeb adds to those of Gopher and C4 (Penedo et al. 2024, arXiv 2406.17557, section 3.6). A
    limit that is null is not looked at."""

    enabled: bool = False
    """Whether the rules are looked at."""
    min_line_punctuation: float | None = 0.12
    """Least share of lines that end with a sentence's end."""
    max_short_lines: float | None = 0.67
    """Greatest share of short lines."""
    short_line_length: int = 30
    """Characters up to which a line is short."""
    max_repeated_lines: float | None = 0.01
    """Greatest share of characters in lines that repeat an earlier one."""
    max_newlines: float | None = 0.3
    """Most line ends a word."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatiosConfig:
    """Shares that GottBERT's corpus was filtered by (Scheible et al. 2024, arXiv 2012.02110). A limit that is null is
    not looked at."""

    enabled: bool = False
    """Whether the rules are looked at."""
    stop_words: tuple[str, ...] = ()
    """The most frequent words of the language, in any case."""
    min_stop_words: float | None = None
    """Least share of stop words among the words."""
    max_punctuation: float | None = None
    """Greatest share of signs among words and signs."""
    max_upper_case: float | None = None
    """Greatest share of words in capitals alone, from two letters on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedLinesConfig:
    """Lines that a document repeats, or that earlier documents have: the first is left, the others are taken out of
    the text."""

    enabled: bool = False
    """Whether they are taken out."""
    min_characters: int = 20
    """Shorter lines may be repeated."""
    across_documents: bool = False
    """Also take out, after all other filters, lines that an earlier document of the corpus has, as CCNet does (Wenzek
    et al. 2020, section 3.1); the corpus is then read and filtered once more, and each line takes 24 bytes of disk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonConfig:
    """A filter of your own: a file with a function check(text), which gives None or True to keep a document, False or
    (False, 'why') to drop it, or the text that takes its place. Its hash is in the manifest."""

    enabled: bool = False
    """Whether it is called."""
    path: str | None = dataclasses.field(default=None, metadata=PATH)
    """The file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiiConfig:
    """Personal data that is replaced; the document stays. What is null stays as it is."""

    enabled: bool = False
    """Whether it is replaced."""
    email: str | None = "email@example.com"
    """What replaces e-mail addresses."""
    ip: str | None = "192.0.2.1"
    """What replaces public IPv4 addresses."""
    phone: str | None = "+1 555 0100"
    """What replaces telephone numbers with a country code, or of North America's form."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """Rules by which documents are dropped or changed before they are tokenized; all rejects are listed in
    rejects.jsonl.gz with rule and score. The rules run in the order of this list."""

    url_blocklist: UrlBlocklistConfig = dataclasses.field(default_factory=UrlBlocklistConfig)
    """Blocked sites and pages."""
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    """A number that each record carries."""
    language: LanguageConfig = dataclasses.field(default_factory=LanguageConfig)
    """Language by its beginning."""
    gopher_repetition: GopherRepetitionConfig = dataclasses.field(default_factory=GopherRepetitionConfig)
    """Repeated lines, paragraphs and n-grams."""
    gopher_quality: GopherQualityConfig = dataclasses.field(default_factory=GopherQualityConfig)
    """Length, symbols, letters and stop words."""
    c4: C4Config = dataclasses.field(default_factory=C4Config)
    """Lines that are sentences, and enough of them."""
    fineweb: FineWebConfig = dataclasses.field(default_factory=FineWebConfig)
    """Ends of lines, short lines and lists."""
    ratios: RatiosConfig = dataclasses.field(default_factory=RatiosConfig)
    """Stop words, punctuation and upper case."""
    repeated_lines: RepeatedLinesConfig = dataclasses.field(default_factory=RepeatedLinesConfig)
    """Lines that a document repeats, or all documents."""
    python: PythonConfig = dataclasses.field(default_factory=PythonConfig)
    """A function of your own."""
    pii: PiiConfig = dataclasses.field(default_factory=PiiConfig)
    """Addresses and telephone numbers."""


def check_filters(filters: FiltersConfig) -> None:
    """Raise UserError for values that make no sense."""
    for section in dataclasses.fields(filters):
        options = getattr(filters, section.name)
        for field in dataclasses.fields(options):
            _check_numbers(f"filters.{section.name}.{field.name}", getattr(options, field.name))
    blocked, score = filters.url_blocklist, filters.score
    if blocked.enabled and not (blocked.domains or blocked.urls):
        raise UserError("filters.url_blocklist.enabled needs filters.url_blocklist.domains or urls: name a file")
    if score.enabled and score.min_score is None:
        raise UserError(
            "filters.score.enabled needs filters.score.min_score: give the least score that is kept, such as 3"
        )
    if filters.language.min_score > 1:
        raise UserError(f"filters.language.min_score is {filters.language.min_score}: expected 0 to 1")
    if filters.ratios.enabled and filters.ratios.min_stop_words and not filters.ratios.stop_words:
        raise UserError("filters.ratios.min_stop_words needs filters.ratios.stop_words: no document could be kept")
    if filters.repeated_lines.across_documents and not filters.repeated_lines.enabled:
        raise UserError("filters.repeated_lines.across_documents needs filters.repeated_lines.enabled: set it to true")
    if filters.python.enabled and not filters.python.path:
        raise UserError("filters.python.enabled needs filters.python.path: name the file with your function check")
    repetition = filters.gopher_repetition
    for name, limits, lengths in (
        ("top_ngrams", repetition.top_ngrams, SHORT_NGRAMS),
        ("repeated_ngrams", repetition.repeated_ngrams, LONG_NGRAMS),
    ):
        if limits is not None and len(limits) != len(lengths):
            raise UserError(
                f"filters.gopher_repetition.{name} has {len(limits)} numbers: expected one for each n from "
                f"{lengths[0]} to {lengths[-1]}"
            )
    _check_quality(filters.gopher_quality)


def _check_numbers(name: str, value: object) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not 0 <= number <= 2**31:  # false for a NaN too
            raise UserError(f"{name} is {number}: expected 0 or more; null switches a rule off")


def _check_quality(quality: GopherQualityConfig) -> None:
    for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
        least, most = getattr(quality, low), getattr(quality, high)
        if quality.enabled and None not in (least, most) and least > most:
            raise UserError(
                f"filters.gopher_quality.{low} {least} is more than filters.gopher_quality.{high} {most}: no document "
                "could be kept"
            )
    stop_words = len(set(quality.stop_words))
    if quality.enabled and (quality.min_stop_words or 0) > stop_words:
        raise UserError(
            f"filters.gopher_quality.min_stop_words is {quality.min_stop_words} of {stop_words} stop_words: no "
            "document could be kept"
        )


def used_filters(filters: FiltersConfig) -> dict[str, dict[str, Any]]:
    """Section -> its options, of the sections that are on: what decides the bytes. Of a file that is its content.

    Raises:
        UserError: a file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for section in dataclasses.fields(filters):
        options = getattr(filters, section.name)
        if not options.enabled:
            continue
        values = found[section.name] = {}
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if not field.metadata.get("path"):
                values[field.name] = value
            elif value:
                values[field.name + HASHED] = _sha256(f"filters.{section.name}.{field.name}", value)
    return found


def _sha256(key: str, path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {key} {path}: {error.strerror}") from error

"""The section ``filters`` of the configuration: rules that published corpora were made by. All are off by default."""

import dataclasses

from data_prep.contract.command_line import UserError

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FiltersConfig:
    """Rules by which documents are dropped or changed before they are tokenized; all rejects are listed in
    rejects.jsonl.gz with rule and score. The rules run in the order of this list."""

    gopher_quality: GopherQualityConfig = dataclasses.field(default_factory=GopherQualityConfig)
    """Length, symbols, letters and stop words."""


def check_filters(filters: FiltersConfig) -> None:
    """Raise UserError for values that make no sense."""
    for section in dataclasses.fields(filters):
        options = getattr(filters, section.name)
        for field in dataclasses.fields(options):
            name, value = f"filters.{section.name}.{field.name}", getattr(options, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not 0 <= value <= 2**31:  # false for a NaN too
                raise UserError(f"{name} is {value}: expected 0 or more; null switches a rule off")
    quality = filters.gopher_quality
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


def used_filters(filters: FiltersConfig) -> dict[str, dict[str, object]]:
    """Section -> its options, of the sections that are on: what decides the bytes."""
    found = {}
    for section in dataclasses.fields(filters):
        options = getattr(filters, section.name)
        if options.enabled:
            found[section.name] = dataclasses.asdict(options)
    return found

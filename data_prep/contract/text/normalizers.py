"""The normalisers of tokenizers that are trained here: what is cleaned, which case and accents are folded."""

import json

from tokenizers import Regex, Tokenizer, normalizers

from data_prep.config import VocabularyConfig
from data_prep.contract.text.cleaning_rules import REPLACEMENTS, WINDOWS_CONTROLS

ACCENTS = r"(?<![[\p{L}\p{M}]&&[^\p{Latin}\p{Greek}\p{Cyrillic}]])(?<![\x{200C}\x{200D}])\p{Mn}+"
"""Marks after anything but a letter or mark of another script: there they are vowels or change the sound."""


def cleaning() -> list[normalizers.Normalizer]:
    """The steps that ``clean`` takes before it composes characters: a text that it gave stays as it is."""
    controls = [normalizers.Replace(control, character) for control, character in WINDOWS_CONTROLS.items()]
    return [*controls, *(normalizers.Replace(Regex(_visible(pattern)), content) for pattern, content in REPLACEMENTS)]


def _visible(pattern: str) -> str:
    """The same pattern in printable ASCII, for tokenizer.json."""
    return "".join(c if " " <= c <= "~" else f"\\x{{{ord(c):X}}}" for c in pattern)


def normalizer(config: VocabularyConfig, *, cleaned: bool = False) -> normalizers.Normalizer:
    """Of a tokenizer trained here.

    Args:
        config: which tokenizer. WordPiece has BERT's normaliser, without the joiners and vowels that it loses.
        cleaned: without the steps that find nothing in a text that ``clean`` gave, and take most of the time.
    """
    steps = _bert_steps if config.model == "wordpiece" else _unicode_steps
    first = [] if cleaned else cleaning()
    return normalizers.Sequence([*first, *steps(config.lowercase, config.strip_accents)])


def _unicode_steps(lowercase: bool, strip_accents: bool | None) -> list[normalizers.Normalizer]:
    """Of a byte-level BPE or Unigram tokenizer."""
    folded: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    return [*folded, *_accents(lowercase, strip_accents), normalizers.NFC()]


def _bert_steps(lowercase: bool, strip_accents: bool | None) -> list[normalizers.Normalizer]:
    folded: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
    blanks = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    return [
        normalizers.Replace("\ufffd", ""),
        normalizers.NFC(),
        blanks,
        *_accents(lowercase, strip_accents),
        *folded,
        normalizers.NFC(),
    ]


def _accents(lowercase: bool, strip_accents: bool | None) -> list[normalizers.Normalizer]:
    if strip_accents is None and lowercase:
        return [normalizers.NFD(), normalizers.Replace(Regex(ACCENTS), "")]
    return [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []


def cleans(content: dict) -> bool:
    """Whether the normaliser of a tokenizer.json begins with ``cleaning``: the tokenizer was trained here."""
    known = _as_json(cleaning())
    return content.get("normalizers", [])[: len(known)] == known


def without_cleaning(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer for text that ``clean`` gave, without the steps that find nothing to do there."""
    content = json.loads(tokenizer.to_str())
    if not cleans(content["normalizer"] or {}):
        return tokenizer
    content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][len(cleaning()) :]
    shorter = Tokenizer.from_str(json.dumps(content))
    shorter.encode_special_tokens = tokenizer.encode_special_tokens
    return shorter


def is_wordpiece_normalizer(content: dict) -> bool:
    """Whether the normaliser of a tokenizer.json is WordPiece's of ``normalizer``, with its cleaning or without."""
    steps = content.get("normalizers", [])
    rest = steps[len(cleaning()) :] if cleans(content) else steps
    return any(
        rest == _as_json(_bert_steps(lowercase, strip_accents))
        for lowercase in (False, True)
        for strip_accents in (None, False, True)
    )


def _as_json(steps: list[normalizers.Normalizer]) -> list[dict]:
    return json.loads(normalizers.Sequence(steps).__getstate__())["normalizers"]

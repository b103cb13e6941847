"""Train, load and hash a tokenizer, and tell which of its tokens continue a word.

The trainers of ``tokenizers`` read words from a randomly seeded hash map, so their results need care to be the same
on every run and for any number of threads:

wordpiece  gives other ids on every run (the library's issue 1794): it numbers the ``##x`` pieces in the order of the
           map, and ties between merges are decided by those numbers. Here every ``##x`` of a sorted alphabet is
           registered first, as a special token, so that it has a fixed number before the map is met; the
           registrations are stripped from the result.
bpe        is the same as it is: the 256 bytes, sorted, are all its characters, and merges with equal counts go by
           those numbers.
unigram    adds up probabilities in the order of the map, so scores differ in their last digits, and with them the
           order of equal pieces; characters it had pruned get scores in the order of the map. Here scores are
           rounded and sorted, and those characters share one score. Which pieces are kept could in principle hang on
           such a last digit still: it is trained twice, and two different results are refused.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data_prep.config import VocabularyConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.files import write_atomically
from data_prep.contract.text.normalizers import cleans
from data_prep.contract.text.scripts import may_begin_unspaced_word

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role -> token, in the order of their ids in a vocabulary trained here (0 to 4)."""

OTHER_SPECIAL_TOKENS = {
    "pad": ("<pad>",),
    "unk": ("<unk>",),
    "cls": ("<s>", "<cls>"),
    "sep": ("</s>", "<sep>"),
    "mask": ("<mask>",),
}
"""Role -> what it is called in vocabularies of RoBERTa, XLM-RoBERTa and their like; ALBERT has some of each."""

MASK_TOKENS = (SPECIAL_TOKENS["mask"], *OTHER_SPECIAL_TOKENS["mask"])
"""What a masked token may be called."""

CONTINUATION = "##"
"""What BERT puts before a piece that continues a word."""

BLANK = "\u2581"
"""What Unigram puts before a piece that begins a word."""


def bert_normalizer(config: VocabularyConfig) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=config.strip_accents)


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """Let ``encode`` put [CLS] and [SEP] around a text."""
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    ids = special_ids(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids["cls"]), (sep, ids["sep"])],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> bool:
    """Write ``tokenizer.json``; False when the very same file is there already.

    Raises:
        UserError: another tokenizer stands at ``path``, or it cannot be written.
    """
    path = Path(path)
    content = tokenizer.to_str(pretty=True).encode()
    try:
        if path.exists():
            if path.read_bytes() == content:
                return False
            raise UserError(f"{path} holds another tokenizer: delete it or name another file with --tokenizer")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer {path}: {error.strerror}") from error
    return True


def load_tokenizer(path: str | Path, vocabulary: VocabularyConfig | None = None) -> Tokenizer:
    """Read ``tokenizer.json`` or a BERT ``vocab.txt``, ready for corpus text.

    It neither truncates nor pads. Special tokens written out in the text ("[MASK]") are ordinary characters, never
    the special ids.

    Args:
        vocabulary: whether text is lower-cased and stripped of accents for a vocab.txt, which does not say so itself.
            None: as the tokenizer_config.json beside it says, or else lower-cased where it has no entry "A".

    Raises:
        UserError: no such file, not a tokenizer, one without [PAD] [UNK] [CLS] [SEP] [MASK] or what stands for them
            in a RoBERTa, or a vocab.txt of the other case.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: make one with `narrowbert-prep vocab` and the same options, "
            "or name your own tokenizer.json or vocab.txt with --tokenizer"
        )
    if path.suffix == ".txt":
        tokenizer = _from_vocabulary_file(path, vocabulary)
    else:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for every kind of bad file
            raise UserError(f"{path} is not a tokenizer.json: {error}") from error
        _check_special_tokens(path, tokenizer.get_vocab(with_added_tokens=True))
        _check_frame(path, tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_frame(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse, before any work, what an export could not use: a vocabulary of other names that frames no text."""
    ids = special_ids(tokenizer)
    named_as_bert = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS.values()] == list(ids.values())
    if not named_as_bert and tokenizer.encode("").ids != [ids["cls"], ids["sep"]]:
        cls, sep = (tokenizer.id_to_token(ids[role]) for role in ("cls", "sep"))
        raise UserError(
            f"the tokenizer {path} does not put {cls} before and {sep} after a text: that of a BERT, a RoBERTa or "
            "their like does"
        )


def _from_vocabulary_file(path: Path, config: VocabularyConfig | None) -> Tokenizer:
    """The tokenizer that transformers' BertTokenizer makes of a vocab.txt: entry i of the file has id i."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a vocab.txt: it is not UTF-8 text ({error.reason})") from error
    vocabulary = {token: number for number, token in enumerate(lines if lines[-1] else lines[:-1])}
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    if missing:
        raise UserError(f"the vocabulary {path} lacks {' '.join(missing)}: a BERT's has all of them")
    cased = "A" in vocabulary
    if config is None:
        config = _as_configured_beside(path, cased)
    elif "a" in vocabulary and cased == config.lowercase:
        raise UserError(
            f"{path} has {'an' if cased else 'no'} entry 'A', but vocabulary.lowercase is "
            f"{str(config.lowercase).lower()}: set it to {str(not cased).lower()}"
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = bert_normalizer(config)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS.values()])
    return with_template(tokenizer)


def _as_configured_beside(path: Path, cased: bool) -> VocabularyConfig:
    """How transformers would read a vocab.txt: by the tokenizer_config.json of its folder."""
    beside = path.with_name("tokenizer_config.json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{beside} is damaged or cannot be read ({error}): copy it again, or remove it") from error
    said = said if isinstance(said, dict) else {}
    lowercase, strip_accents = said.get("do_lower_case"), said.get("strip_accents")
    return VocabularyConfig(
        lowercase=lowercase if isinstance(lowercase, bool) else not cased,
        strip_accents=strip_accents if isinstance(strip_accents, bool) else None,
    )


def tokenizer_content(path: str | Path, vocabulary: VocabularyConfig | None = None) -> bytes:
    """The tokenizer.json of what ``load_tokenizer`` reads: the file as it is, or what a vocab.txt becomes.

    Raises:
        UserError: as ``load_tokenizer``.
    """
    tokenizer = load_tokenizer(path, vocabulary)
    return tokenizer.to_str(pretty=True).encode() if Path(path).suffix == ".txt" else Path(path).read_bytes()


def _check_special_tokens(path: Path, vocabulary: dict[str, int]) -> None:
    found = _special_tokens(vocabulary, ())
    missing = [" or ".join((token, *OTHER_SPECIAL_TOKENS[r])) for r, token in SPECIAL_TOKENS.items() if r not in found]
    if missing:
        raise UserError(
            f"the tokenizer {path} lacks {', '.join(missing)}: that of a BERT, a RoBERTa or their like has all of them"
        )


def _special_tokens(vocabulary: Collection[str], special: Collection[str]) -> dict[str, str]:
    """Role -> token, of those roles that have one; of several names one that is registered as special comes first."""
    if all(token in vocabulary for token in SPECIAL_TOKENS.values()):
        return SPECIAL_TOKENS
    found: dict[str, str] = {}
    for role, token in SPECIAL_TOKENS.items():
        names = [name for name in (token, *OTHER_SPECIAL_TOKENS[role]) if name in vocabulary]
        if names:
            found[role] = next((name for name in names if name in special), names[0])
    return found


def tokenizer_hash(path: str | Path) -> str:
    """sha256 of the file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    names = _special_tokens(tokenizer.get_vocab(with_added_tokens=True), special)
    return {role: tokenizer.token_to_id(names[role]) for role in SPECIAL_TOKENS}  # type: ignore[misc]


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: a vocabulary may have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Sorted ids that may stand in for a masked token: neither added tokens nor "[unusedN]" and the like."""
    return sorted(number for token, number in _plain_tokens(tokenizer) if not _unused(token))


def continues_word(tokenizer: Tokenizer) -> np.ndarray:
    """[vocabulary] bool, whether a token continues the word before it; added tokens never do.

    For WordPiece that is what "##" says. Byte-level and Unigram vocabularies mark what follows a blank; of the rest a
    token that begins with a letter or digit (or in the middle of a character) continues a word, one that begins with
    punctuation, a symbol or an ideograph begins one. So "(word" is one word, and "word)" two.

    Thai, Lao, Khmer and Burmese have no blanks between words: there a token that begins with a letter is a word of its
    own, if the tokenizer cleans text itself, as those trained here do. Another one keeps the masks of its folders.

    Raises:
        UserError: a vocabulary of another kind, which does not tell.
    """
    continues = _continuation_test(tokenizer)
    flags = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    for token, number in _plain_tokens(tokenizer):
        flags[number] = continues(token)
    return flags


def _plain_tokens(tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """(token, id) of all but added and special tokens."""
    added = set(tokenizer.get_added_tokens_decoder()) | set(special_ids(tokenizer).values())
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number not in added:
            yield token, number


def _unused(token: str) -> bool:
    """Whether it only takes up an id, as in the vocabularies of BERT, RoBERTa and CamemBERT."""
    return re.fullmatch(r"\[unused.*\]|madeupword\d{4}|</?\w+>NOTUSED", token, re.DOTALL) is not None


def _continuation_test(tokenizer: Tokenizer) -> Callable[[str], bool]:
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    prefix = model.get("continuing_subword_prefix")
    # Masks follow from this: an older tokenizer, and one from elsewhere, keeps those that its folders have.
    alone = may_begin_unspaced_word if cleans(content["normalizer"] or {}) else _never
    if prefix:
        return lambda token: token.startswith(prefix) and token != prefix and not alone(token[len(prefix)])
    pre_tokenizer = content["pre_tokenizer"] or {}
    kinds = {step["type"] for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if step}
    if "ByteLevel" in kinds:
        values = _byte_values()
        return lambda token: _bytes_continue_word(bytes(values.get(c, ord("?")) for c in token), alone)
    if "Metaspace" in kinds:
        return lambda token: _stands_in_word(token[:1]) and not alone(token[0])
    raise UserError(
        f"a tokenizer of the kind {model.get('type')} with the pre-tokenizer {pre_tokenizer.get('type')} does not tell "
        "where words begin: set mask.unit to token, or use a WordPiece, byte-level or Metaspace tokenizer"
    )


def _byte_values() -> dict[str, int]:
    """Character -> byte, GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {**{chr(byte): byte for byte in printable}, **{chr(0x100 + i): byte for i, byte in enumerate(others)}}


def _never(_character: str) -> bool:
    return False


def _bytes_continue_word(token: bytes, alone: Callable[[str], bool]) -> bool:
    """Whether a piece of UTF-8 text, which may begin or end inside a character, continues a word."""
    if not token:
        return False
    for size in range(1, 5):
        try:
            character = token[:size].decode()
            return _stands_in_word(character) and not alone(character)
        except UnicodeDecodeError:
            continue
    # Not a whole character: its end (below 0xC0), or the beginning of a letter, an ideograph (U+3000 to U+9FFF begin
    # with 0xE3 to 0xE9) or an emoji (from 0xF0).
    return not (0xE3 <= token[0] <= 0xE9 or token[0] >= 0xF0)


def _stands_in_word(character: str) -> bool:
    """Whether a character is a letter, mark or digit of a script that writes words apart."""
    if not character or unicodedata.category(character)[0] not in "LMN":
        return False
    code = ord(character)
    return not (0x2E80 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF)

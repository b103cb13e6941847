"""Train, load and fingerprint a tokenizer.

The WordPiece trainer of `tokenizers` gives other ids on every run (its issue 1794): it numbers the
`##x` pieces in the order of a randomly seeded hash map, and ties between merges are decided by those
numbers. Here every `##x` of a sorted alphabet is registered first, as a special token, so that it has
a fixed number before the hash map is met; the registrations are stripped from the result.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.command_line import UserError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role -> token, in the order of their ids in a vocabulary trained here (0 to 4)."""

CONTINUATION = "##"


def train_wordpiece(
    texts: Callable[[], Iterable[str]],
    *,
    size: int,
    lowercase: bool,
    min_frequency: int,
    alphabet_size: int,
) -> Tokenizer:
    """Train a BERT WordPiece tokenizer; the same text gives the same ids, whatever the threads.

    Args:
        texts: called twice, must give the same texts both times.
        size: entries at most, special tokens included.
        lowercase: fold case and strip accents.
        min_frequency: pairs seen less often are not merged.
        alphabet_size: the most frequent characters kept.

    Raises:
        UserError: the text holds no character, or `size` has no room for its alphabet.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)  # type: ignore[assignment]
    alphabet = _alphabet(texts(), tokenizer.normalizer, alphabet_size)
    if not alphabet:
        raise UserError("the corpus holds no text to train a vocabulary on: check --corpus.paths")
    if size < len(SPECIAL_TOKENS) + 2 * len(alphabet):
        raise UserError(
            f"vocabulary.size {size} has no room for the corpus's {len(alphabet)} characters (each needs "
            f"two entries): raise it to {len(SPECIAL_TOKENS) + 2 * len(alphabet)} or more, or lower "
            "vocabulary.alphabet_size"
        )
    reserved = list(SPECIAL_TOKENS.values())
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=reserved + [CONTINUATION + c for c in alphabet],  # type: ignore[arg-type]
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        continuing_subword_prefix=CONTINUATION,
    )
    tokenizer.train_from_iterator(iter(texts()), trainer=trainer)
    return _finish(tokenizer)


def _alphabet(texts: Iterable[str], normalizer: object, limit: int) -> list[str]:
    """The `limit` most frequent characters of the normalised text, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))  # type: ignore[attr-defined]
    kept = [c for c in counts if not c.isspace()]
    return sorted(sorted(kept, key=lambda c: (-counts[c], c))[:limit])


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    """Drop the `##x` registrations and add the [CLS] ... [SEP] template."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL_TOKENS.values()]
    finished = Tokenizer.from_str(json.dumps(content))
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    ids = special_ids(finished)
    finished.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids["cls"]), (sep, ids["sep"])],
    )
    return finished


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> bool:
    """Write `tokenizer.json`; False when the very same file is there already.

    Raises:
        UserError: another tokenizer stands at `path`, or it cannot be written.
    """
    path = Path(path)
    content = tokenizer.to_str(pretty=True).encode()
    try:
        if path.exists():
            if path.read_bytes() == content:
                return False
            raise UserError(f"{path} holds another tokenizer: delete it or name another file with --tokenizer")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write the tokenizer {path}: {error.strerror}") from error
    return True


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read `tokenizer.json` ready for corpus text: no truncation, no padding, and special tokens
    written out in the text ("[MASK]") are ordinary characters, never the special ids.

    Raises:
        UserError: no such file, not a tokenizer, or one without [PAD] [UNK] [CLS] [SEP] [MASK].
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: make one with `narrowbert-prep vocab` and the same options, "
            "or name your own tokenizer.json with --tokenizer"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of bad file
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error
    missing = [t for t in SPECIAL_TOKENS.values() if tokenizer.token_to_id(t) is None]
    if missing:
        raise UserError(f"the tokenizer {path} lacks {' '.join(missing)}: a BERT tokenizer has all of them")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def fingerprint(path: str | Path) -> str:
    """sha256 of the file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""
    return {role: tokenizer.token_to_id(token) for role, token in SPECIAL_TOKENS.items()}  # type: ignore[misc]


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: a vocabulary may have holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def ordinary_ids(tokenizer: Tokenizer) -> list[int]:
    """Sorted ids that may stand in for a masked token: neither added tokens nor "[unusedN]"."""
    added = set(tokenizer.get_added_tokens_decoder()) | set(special_ids(tokenizer).values())
    return sorted(_ordinary(tokenizer.get_vocab(with_added_tokens=True), added))


def _ordinary(vocabulary: dict[str, int], excluded: set[int]) -> Iterator[int]:
    for token, number in vocabulary.items():
        if number not in excluded and not (token.startswith("[unused") and token.endswith("]")):
            yield number

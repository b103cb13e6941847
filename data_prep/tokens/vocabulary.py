"""Vocabularies trained deterministically: WordPiece, byte-level BPE, Unigram."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.config import VocabularyConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.text.normalizers import normalizer
from data_prep.contract.text.scripts import LONG_PHRASE, is_complex_context
from data_prep.contract.tokenizer import BLANK, CONTINUATION, SPECIAL_TOKENS, with_template

PUNCTUATION_OR_WORD = rf"{BLANK}?[\p{{P}}\p{{S}}&&[^{BLANK}]]|{BLANK}?[^\p{{P}}\p{{S}}]+"
"""No Unigram piece holds punctuation beside letters, as in SentencePiece, which parts scripts."""

SCORE_DIGITS = 4
"""Digits kept of a Unigram piece's log-probability; a training's noise is about 1e-13."""

ALPHABET_SIZE = 1_000
"""Characters of an alphabet, at least, where no number is given."""

Texts = Callable[[], Iterable[str]]


def count_characters(texts: Iterable[str], config: VocabularyConfig) -> Counter[str]:
    """The characters of cleaned texts as the normaliser of the tokenizer leaves them, white space aside."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
    # No step of the normaliser looks across white space, and most words come again and again.
    normalize = normalizer(config, cleaned=True).normalize_str
    counts: Counter[str] = Counter()
    for word, number in words.items():
        for character in normalize(word):
            if not character.isspace():
                counts[character] += number
    return counts


def train_tokenizer(texts: Texts, config: VocabularyConfig, characters: Counter[str] | None = None) -> Tokenizer:
    """Train a tokenizer; the same text gives the same ids, whatever the threads.

    Args:
        texts: cleaned; called several times, must give the same texts each time.
        config: which tokenizer.
        characters: ``count_characters`` of the texts, where that is known already.

    Raises:
        UserError: the text holds no character, the size has no room for its alphabet, or two Unigram trainings
            differ.
    """
    if config.model == "bpe":
        tokenizer = _train_bpe(texts, config)
    else:
        counts = count_characters(texts(), config) if characters is None else characters
        train = _train_wordpiece if config.model == "wordpiece" else _train_unigram
        tokenizer = train(texts, config, counts)
    tokenizer.normalizer = normalizer(config)  # type: ignore[assignment]
    return with_template(tokenizer)


def _train_wordpiece(texts: Texts, config: VocabularyConfig, characters: Counter[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    tokenizer.normalizer = normalizer(config, cleaned=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUATION)  # type: ignore[assignment]
    alphabet, _ = _alphabet(characters, config)
    _check_size(config, 2 * len(alphabet), f"the corpus's {len(alphabet)} characters (each needs two entries)")
    tokenizer.pre_tokenizer = _bert_pre_tokenizer(alphabet)  # type: ignore[assignment]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS.values(), *(CONTINUATION + c for c in alphabet)],  # type: ignore[arg-type]
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        continuing_subword_prefix=CONTINUATION,
    )
    tokenizer.train_from_iterator(iter(texts()), trainer=trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL_TOKENS.values()]
    return Tokenizer.from_str(json.dumps(content))


def _bert_pre_tokenizer(alphabet: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """BERT's; phrases without blanks are cut, for a longer word than the model takes would be one [UNK]."""
    bert = pre_tokenizers.BertPreTokenizer()
    if not any(map(is_complex_context, alphabet)):
        return bert
    cut = pre_tokenizers.Split(Regex(LONG_PHRASE), behavior="isolated")
    return pre_tokenizers.Sequence([cut, bert])


def _train_bpe(texts: Texts, config: VocabularyConfig) -> Tokenizer:
    """Byte-level BPE (GPT-2, Radford et al. 2019): its alphabet is the 256 bytes, so nothing is [UNK]."""
    if not any(text.strip() for text in texts()):
        raise _no_text()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(config, len(alphabet), f"the {len(alphabet)} bytes", adjustable=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer(config, cleaned=True)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(iter(texts()), trainer=trainer)
    return tokenizer


def _train_unigram(texts: Texts, config: VocabularyConfig, characters: Counter[str]) -> Tokenizer:
    """Unigram (Kudo 2018) over words at white space and punctuation, as in ALBERT."""
    normalize = normalizer(config, cleaned=True).normalize_str
    alphabet, rare = _alphabet(characters, config)
    _check_size(config, len(alphabet) + 1, f"the corpus's {len(alphabet)} characters")
    # The trainer keeps every character it meets, so it must not meet the rare ones.
    blanks = str.maketrans(dict.fromkeys(rare, " "))
    trainings = []
    for _ in range(2):
        known = (normalize(text).translate(blanks) for text in texts())
        trainings.append(_unigram_training(known, config.size))
    first, second = (dict(content["model"]["vocab"]) for content in trainings)
    if first != second:
        raise UserError(
            f"two trainings of the unigram vocabulary differ in {len(first.items() ^ second.items())} entries, since "
            "some of its pieces are equally good: change vocabulary.size a little, or set vocabulary.model to "
            "wordpiece or bpe"
        )
    tokenizer = Tokenizer.from_str(json.dumps(trainings[0]))
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK)  # type: ignore[assignment]
    return tokenizer


def _unigram_training(texts: Iterable[str], size: int) -> dict[str, Any]:
    """tokenizer.json of one training on normalised texts, without the noise in scores and order."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always"),
            pre_tokenizers.Split(Regex(PUNCTUATION_OR_WORD), behavior="isolated"),
        ]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS.values()),
        unk_token=SPECIAL_TOKENS["unk"],
    )
    tokenizer.train_from_iterator(iter(texts), trainer=trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    special, pieces = vocabulary[: len(SPECIAL_TOKENS)], vocabulary[len(SPECIAL_TOKENS) :]
    # A character that was pruned comes back with the lowest score plus 0.0001 for each one before it.
    lowest = min(score for _, score in pieces)
    highest = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    rounded = [
        (piece, round(lowest if len(piece) == 1 and score <= highest else score, SCORE_DIGITS))
        for piece, score in pieces
    ]
    content["model"]["vocab"] = [*special, *sorted(rounded, key=lambda item: (-item[1], item[0]))]
    return content


def _alphabet(counts: Counter[str], config: VocabularyConfig) -> tuple[list[str], list[str]]:
    """The most frequent characters of the normalised text that become pieces, sorted; and the others."""
    by_frequency = sorted(counts, key=lambda c: (-counts[c], c))
    if not by_frequency:
        raise _no_text()
    limit = config.alphabet_size or _covering([counts[c] for c in by_frequency], config)
    return sorted(by_frequency[:limit]), by_frequency[limit:]


def _covering(counts: list[int], config: VocabularyConfig) -> int:
    """How many of the characters with these falling counts are the alphabet."""
    wanted = config.alphabet_coverage * sum(counts)
    covering = next((number for number, sum_ in enumerate(accumulate(counts), 1) if sum_ >= wanted), len(counts))
    return max(ALPHABET_SIZE, min(covering, config.size // 4))


def _no_text() -> UserError:
    return UserError("the corpus holds no text to train a vocabulary on: check --corpus.paths")


def _check_size(config: VocabularyConfig, alphabet: int, what: str, adjustable: bool = True) -> None:
    needed = len(SPECIAL_TOKENS) + alphabet
    if config.size < needed:
        raise UserError(
            f"vocabulary.size {config.size} has no room for {what} and the {len(SPECIAL_TOKENS)} special tokens: "
            f"raise it to {needed} or more" + (", or lower vocabulary.alphabet_size" if adjustable else "")
        )

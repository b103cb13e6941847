"""How likely a text is as one of a language: by which letters stand beside which.

``letters.npz`` holds shares of letters and of pairs of them in some 75 languages, of Chinese characters and kana in
four. They were counted in the translations of Django, Sphinx and other free programs.
"""

import dataclasses
import itertools
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np

IMPOSSIBLE, FRAME, SPACE, DIGIT, MARK, APOSTROPHE, QUOTE, DASH, SIGN, RARE = range(10)
"""What a character is that is no letter."""

FIRST_LETTER = 16
"""From here on a symbol is the code point of a lower-case letter."""

COMMA_BELOW = str.maketrans("ȘȚșț", "ŞŢşţ")
"""Romanian has its letters with a comma; older code pages, and most texts in them, with a cedilla."""

IDEOGRAPHS = 0x2E80
"""From here on characters are counted one by one, without what stands beside them."""

_QUANTUM = 12  # of shares in letters.npz: a nat has so many steps, 255 is a share of 0
_UNSEEN = 1e-5  # share of a letter that a language does not have
_SIGN_SHARES = np.log([1e-8, 1e-6, 0.1, 0.02, 0.03, 0.005, 0.005, 0.005, 5e-4, 2e-5])
_CASE_CHANGE = -4.5  # nats of a capital behind a small letter
_NO_IDEOGRAPHS = -18.0  # nats of an ideograph in a language of letters
_MIXED = -4.0  # nats of an ideograph beside a letter of ASCII
_CHARSETS = (("gb2312", 0xB0, 0xD7), ("big5", 0xA4, 0xC6), ("euc_jp", 0xB0, 0xCF), ("euc_kr", 0xB0, 0xC8))
_SYMBOLS: dict[str, int] = {}


def _symbol(character: str) -> int:
    code = ord(character)
    if character in " \t\n\r\f\u3000":
        return SPACE
    category = unicodedata.category(character)
    if category[0] in "LM":
        lower = character.lower().translate(COMMA_BELOW)
        return ord(lower) if len(lower) == 1 else code
    if category in ("Cc", "Co", "Cn", "Cs") or character == "\ufffd":
        return IMPOSSIBLE
    if category[0] == "N":
        return DIGIT if category == "Nd" else RARE if code > 0xFF else SIGN
    if character in "'’‘`´":
        return APOSTROPHE if character in "'’" else QUOTE
    if character in "“”„«»‚":
        return QUOTE
    if character in "–—…•·":
        return DASH
    if code < 0x80:
        return MARK
    if character in "§©®°€£¥™№¿¡؟،؛、。「」・！？，：；（）《》":
        return SIGN
    return FRAME if 0x2500 <= code < 0x25A0 else RARE


def symbols_of(text: str) -> np.ndarray:
    """[characters] u32, what each is: a small letter by its code point, or a kind of sign."""
    for character in set(text) - _SYMBOLS.keys():
        _SYMBOLS[character] = _symbol(character)
    return np.array([_SYMBOLS[character] for character in text], dtype=np.uint32)


class _Model:
    """The tables, as natural logarithms are taken of them."""

    def __init__(self) -> None:
        with np.load(Path(__file__).with_name("letters.npz")) as tables:
            names = [str(name) for name in tables["languages"]]
            self._letters = tables["letters"].astype(np.int64)
            self._shares = _shares(tables["shares"])
            self._pairs = tables["pairs"].astype(np.int64)
            self._pair_shares = _shares(tables["pair_shares"])
            self._characters = tables["characters"].astype(np.int64)
            self._character_shares = _shares(tables["character_shares"])
        # Languages that are not among them are like the mean of those in their script.
        script = np.array([self._script(row) for row in self._shares])
        means = [script == 0, script == 1]
        self._shares = np.vstack([self._shares, *(self._shares[rows].mean(0, keepdims=True) for rows in means)])
        self._pair_shares = np.vstack(
            [self._pair_shares, *(self._pair_shares[rows].mean(0, keepdims=True) for rows in means)]
        )
        self.names = np.array([*names, "Latin", "Cyrillic", "zh_Hans", "zh_Hant", "ja", "ko"])
        self._cyrillic = np.concatenate([script == 1, [False, True]])
        self._english = names.index("en")

    def _script(self, shares: np.ndarray) -> int:
        """0 Latin, 1 Cyrillic, 2 another."""
        common = int(self._letters[np.argmax(np.where(self._letters >= FIRST_LETTER, shares, 0))])
        return 0 if common < 0x250 else 1 if 0x400 <= common < 0x530 else 2

    def fits(self, text: str) -> tuple[np.ndarray, float]:
        """``Reading.fits``, and the mean over what is not ASCII, in the language that has it most."""
        symbols = symbols_of(text)
        single = symbols >= IDEOGRAPHS
        codes = symbols.astype(np.int64)
        spaced = np.concatenate([[SPACE], np.where(single, SPACE, codes)])
        pairs, counts = np.unique((spaced[:-1] * 65536 + spaced[1:])[~single], return_counts=True)
        ln_pairs = self._ln_pairs(pairs)
        fits = ln_pairs @ counts
        ideographs, numbers = np.unique(codes[single], return_counts=True)
        total = numbers.sum()
        letter = (codes >= ord("a")) & (codes <= ord("z"))
        mixed = np.count_nonzero(single[1:] & letter[:-1]) + np.count_nonzero(single[:-1] & letter[1:])
        latin = fits[self._english] + _MIXED * mixed
        chinese = self._ln_characters(ideographs) @ numbers
        fits = np.concatenate([fits + total * _NO_IDEOGRAPHS, latin + chinese])
        rare = (pairs >> 16 >= 0x80) | (pairs & 0xFFFF >= 0x80)
        best = int(np.argmax(fits))
        if best >= len(fits) - 4:
            return fits, float(chinese[best - len(fits)]) / max(int(total), 1)
        return fits, float((ln_pairs[:, rare] @ counts[rare]).max()) / max(int(counts[rare].sum()), 1)

    def _ln_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """[languages, pairs] f64."""
        place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        known = self._pairs[place] == pairs
        together = np.where(known, self._pair_shares[:, place], 0)
        second = pairs & 0xFFFF
        where = np.minimum(np.searchsorted(self._letters, second), len(self._letters) - 1)
        alone = np.where(self._letters[where] == second, self._shares[:, where], 0)
        floor = np.where(second < FIRST_LETTER, np.exp(_SIGN_SHARES)[np.minimum(second, 9)], _UNSEEN)
        elsewhere = 0.6 * together + 0.4 * alone  # for words of another language in the same script
        elsewhere = np.where(self._cyrillic[:, None], elsewhere[-1], elsewhere[-2])
        return np.log(0.88 * together + 0.08 * alone + 0.03 * elsewhere + 0.01 * floor)

    def _ln_characters(self, codes: np.ndarray) -> np.ndarray:
        """[4, characters] f64, of Chinese, traditional Chinese, Japanese and Korean."""
        place = np.minimum(np.searchsorted(self._characters, codes), len(self._characters) - 1)
        alone = np.where(self._characters[place] == codes, self._character_shares[:, place], 0)
        floor = np.array([[_rank(chr(code), *charset) for code in codes.tolist()] for charset in _CHARSETS])
        return np.log(0.95 * alone + 0.05 * floor.reshape(alone.shape))


def _rank(character: str, charset: str, first: int, last: int) -> float:
    """The share of a character that was not counted, by which part of its standard it stands in."""
    try:
        lead = character.encode(charset)[0]
    except UnicodeEncodeError:
        return 1e-7
    return 1e-4 if first <= lead <= last else 1e-5


def _shares(quanta: np.ndarray) -> np.ndarray:
    return np.where(quanta == 255, 0.0, np.exp(-quanta.astype(np.float64) / _QUANTUM))


@lru_cache(maxsize=1)
def _model() -> _Model:
    return _Model()


@dataclasses.dataclass(frozen=True)
class Reading:
    """A text as it reads in every language."""

    fits: np.ndarray
    """[languages] f64, ln of its probability, give or take what is the same for all."""
    mean: float
    """Of the nats of what is not ASCII, in the language that has it most."""
    ideographs: bool
    """Whether the language that fits best is Chinese, Japanese or Korean."""


def languages() -> np.ndarray:
    """[languages] names, in the order of ``Reading.fits``."""
    return _model().names


def read(text: str) -> Reading:
    """A text in NFC as it reads in every language. It compares what the same bytes may mean."""
    fits, mean = _model().fits(text)
    changes = sum(a.islower() and b.isupper() for a, b in itertools.pairwise(text))
    return Reading(fits + _CASE_CHANGE * changes, mean, int(np.argmax(fits)) >= len(fits) - len(_CHARSETS))

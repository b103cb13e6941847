"""Which code page a text is in: the one in which it reads best, where no other reads as well."""

import re
import unicodedata

import numpy as np

from data_prep.contract.shell.encodings import codec_of
from data_prep.corpus.encodings.letters import COMMA_BELOW, Reading, languages, read

SCORED_BYTES = 6_000
"""Of the lines that a decision is made by."""

_MARGIN = 4.0
"""Nats by which a reading must be likelier than any other."""

_FEW_BYTES, _FEW_MARGIN = 3, 8.0
"""With fewer bytes that are not ASCII the margin is this, but for what is most common."""

_DECLARED = 12.0
"""Nats for what a head of XML or HTML declares."""

_FOREIGN = -5.0
"""Nats for a language that the code page was not made for."""

_LEAST_MEANS = (-5.2, -9.0)
"""Nats of what is not ASCII, on average, that a text must have: of letters, of ideographs."""

_MOST_BAD = 50
"""One of so many characters may be undecodable: the texts with such are rejected later, or mended."""

_WEST = "en de fr es pt it nl sv da no fi is eu gl ca af id ga gd ms sw br tet ht ast ig sq lb Latin"
_CENTRAL = "pl cs sk hu sl hr sr_Latn bs ro sq hsb dsb de tk en Latin"
_TURKISH = f"tr az uz {_WEST}"
_BALTIC = "lt lv et pl en de fi Latin"
_CYRILLIC = "ru bg uk be mk sr mn tg ky kk tt os Cyrillic"

# nats before any text is seen -> code page -> languages it was made for
_PAGES: dict[float, dict[str, str]] = {
    0.0: {"cp1252": _WEST, "cp1251": _CYRILLIC},
    -0.5: {
        "cp1250": _CENTRAL, "cp1253": "el", "cp1254": _TURKISH, "cp1255": "he", "cp1256": "ar fa ur ug ckb ks",
        "cp1257": _BALTIC, "cp1258": "vi", "cp874": "th", "koi8_r": _CYRILLIC, "cp932": "ja", "euc_jp": "ja",
        "gb18030": "zh_Hans zh_Hant", "big5": "zh_Hant", "cp949": "ko",
    },
    -1.5: {
        "iso8859_2": _CENTRAL, "iso8859_3": "eo tr Latin", "iso8859_4": _BALTIC, "iso8859_5": _CYRILLIC,
        "iso8859_6": "ar", "iso8859_7": "el", "iso8859_8": "he", "iso8859_9": _TURKISH, "iso8859_10": f"{_WEST} lt",
        "iso8859_13": _BALTIC, "iso8859_14": f"{_WEST} cy", "iso8859_15": f"{_WEST} et",
        "iso8859_16": f"{_CENTRAL} it fr ga", "koi8_u": _CYRILLIC,
    },
    -3.0: {
        "cp866": _CYRILLIC, "cp850": _WEST, "cp852": _CENTRAL, "cp437": _WEST, "cp855": _CYRILLIC, "johab": "ko",
        "mac_roman": _WEST, "mac_cyrillic": _CYRILLIC, "cp950": "zh_Hant", "big5hkscs": "zh_Hant",
        "shift_jis_2004": "ja", "euc_jis_2004": "ja",
    },
    -5.0: {
        "cp858": _WEST, "cp857": _TURKISH, "cp737": "el", "cp775": _BALTIC, "cp860": "pt", "cp861": "is", "cp862": "he",
        "cp863": "fr", "cp865": "da no sv", "cp869": "el", "cp720": "ar", "cp1125": _CYRILLIC, "koi8_t": "tg",
        "kz1048": "kk", "ptcp154": "kk tt ky mn", "mac_latin2": _CENTRAL, "mac_croatian": "hr sl bs sr_Latn",
        "mac_romanian": "ro", "mac_iceland": "is", "mac_greek": "el", "mac_turkish": "tr",
    },
}  # fmt: skip
_COMMON = ("cp1252", "cp1250", "cp1251", "cp1254")
_DECLARATION = re.compile(
    rb"<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([\w.:-]+)|<meta[^>]{0,200}?charset\s*=\s*[\"']?([\w.:-]+)"
)


def declared_encoding(head: bytes) -> str | None:
    """The codec that a head of XML or HTML names."""
    found = _DECLARATION.search(head[:4096])
    return None if found is None else codec_of((found[1] or found[2]).decode("ascii"))


def code_page(evidence: bytes, declared: str | None = None) -> str | None:
    """The codec of bytes that are not UTF-8, or None where none reads well, or several do and differ.

    Args:
        evidence: lines with bytes that are not ASCII; the first may begin, and the last end, inside a character.
        declared: what the file itself says.
    """
    scored = _telling_lines(evidence)
    rare = len(scored.translate(None, bytes(range(128))))
    best: dict[str, tuple[float, str, Reading]] = {}
    for prior, pages in _PAGES.items():
        for page, made_for in pages.items():
            text = _decoded(scored, page)
            if text is None or _decoded(evidence, page) is None:
                continue
            reading = best[text][2] if text in best else read(text)
            affinity = np.where(np.isin(languages(), made_for.split()), 0.0, _FOREIGN)
            score = prior + float((reading.fits + affinity).max()) + (_DECLARED if codec_of(page) == declared else 0.0)
            if text not in best or best[text][0] < score:
                best[text] = (score, page, reading)
    ranked = sorted(best.values(), key=lambda found: -found[0])
    if not ranked:
        return None
    score, page, reading = ranked[0]
    believed = codec_of(page) == declared
    if reading.mean < _LEAST_MEANS[reading.ideographs] and not believed:
        return None
    few = rare < _FEW_BYTES and page not in _COMMON and not believed
    margin = _FEW_MARGIN if few else _MARGIN
    return None if len(ranked) > 1 and score - ranked[1][0] < margin else page


def _decoded(data: bytes, page: str) -> str | None:
    """In NFC; None where too much of it is in no such code page."""
    text = data.decode(page, "replace")
    if text.count("\ufffd") * _MOST_BAD > len(text):
        return None
    return unicodedata.normalize("NFC", text).translate(COMMA_BELOW)


def _telling_lines(evidence: bytes) -> bytes:
    """The first lines with bytes that are not ASCII, and those in which one occurs for the first time."""
    chosen, size = [], 0
    seen: set[int] = set()
    for line in evidence.splitlines(keepends=True) if b"\n" in evidence else [evidence]:
        rare = set(line.translate(None, bytes(range(128))))
        if rare and (size < SCORED_BYTES or rare - seen):
            line = line if len(line) < 2 * SCORED_BYTES else line[: 2 * SCORED_BYTES]
            chosen.append(line)
            size += len(line)
            seen |= rare
        if size > 4 * SCORED_BYTES:
            break
    return b"".join(chosen)

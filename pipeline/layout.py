"""The paper's layout strings: ``2sf:10sf`` -> the sublayers of an encoder.

``s`` is one self-attention sublayer, ``f`` one feed-forward sublayer, a number repeats the
letters after it, ``:`` is the narrowing point. Left of it every position is computed; right of
it only the narrow (masked) positions are. Source: Li et al., "NarrowBERT", ACL 2023, section 2.
``w`` is ours: a self-attention sublayer whose positions see their neighbours alone, as most of ModernBERT's do
(Warner et al. 2024, section 2.1), whose base model is ``7sfwfwf sf``.
"""

import dataclasses
import itertools
import re
from typing import NoReturn

MAX_REPEATS = 1000
ATTENTIONS = "sw"
"""Letters of the attention sublayers: over the whole row, and over a window of it."""

_GROUP = re.compile(r"\s*([0-9]*)([swf]*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The sublayers of one encoder, in the order in which they run."""

    full: str
    """Sublayers over every position, one letter each, such as ``sfsf``."""
    narrow: str
    """Sublayers over the narrow positions only; empty for plain BERT."""

    @property
    def num_layers(self) -> int:
        """Attention sublayers, which is what ``num_hidden_layers`` counts in the paper's models."""
        return sum(letter in ATTENTIONS for letter in self.full + self.narrow)

    def control(self) -> "Layout":
        """Plain BERT with the same sublayers: what a speed-up is measured against."""
        return Layout(full=self.full + self.narrow, narrow="")

    def __str__(self) -> str:
        text = _compress(self.full)
        return f"{text}:{_compress(self.narrow)}" if self.narrow else text


def parse_layout(text: str) -> Layout:
    """Read a layout string such as ``12sf``, ``2sf:10sf`` or ``2sf 10s : 10f``.

    Raises:
        ValueError: one line that shows the first character that does not fit.
    """
    parts = text.split(":")
    if len(parts) > 2:
        _fail(text, text.index(":", text.index(":") + 1), "a second ':' (one narrowing point at most)")
    full = _parse_side(text, 0, len(parts[0]))
    narrow = _parse_side(text, len(parts[0]) + 1, len(text)) if len(parts) == 2 else ""
    if not set(ATTENTIONS) & set(full + narrow):
        raise ValueError(f"layout '{text}' has no attention sublayer: write for example '12sf' or '2sf:10sf'")
    if "w" in narrow:
        _fail(
            text,
            text.index("w", text.index(":")),
            "'w' is a sublayer of full rows: right of ':' a position reads the frozen state of the whole row ('s')",
        )
    return Layout(full=full, narrow=narrow)


def without_windows(letters: str) -> str:
    """``sfwf`` -> ``sfsf``: the kinds of weights, which a window does not change."""
    return letters.replace("w", "s")


def group_sublayers(letters: str) -> list[str]:
    """``sfwff`` -> ``["sf", "wf", "f"]``: an attention and the feed-forward after it are one layer."""
    return re.findall("[sw]f|[swf]", letters)


def kv_projections(narrow_kv: str, num_narrow: int) -> list[int]:
    """Which key/value projection of the frozen state each narrow attention sublayer reads.

    Args:
        narrow_kv: ``per_layer``, ``shared`` (one for all) or ``grouped:N`` (one for each N in a row).
        num_narrow: narrow attention sublayers.

    Raises:
        ValueError: one line, for any other text.
    """
    if narrow_kv == "shared":
        return [0] * num_narrow
    matched = re.fullmatch(r"per_layer|grouped:([1-9][0-9]*)", narrow_kv)
    if matched is None:
        raise ValueError(f"'{narrow_kv}' is none of per_layer, shared, grouped:N (such as grouped:2)")
    return [index // int(matched[1] or 1) for index in range(num_narrow)]


def _parse_side(text: str, start: int, end: int) -> str:
    sublayers = ""
    while text[start:end].strip():
        match = _GROUP.match(text, start, end)
        assert match is not None  # the pattern matches the empty string
        (number, letters), start = match.groups(), match.end()
        if not letters and start < end and not text[start].isspace():
            _fail(text, start, "expected 's', 'w' or 'f', with an optional number before")
        if not letters:
            _fail(text, start - 1, "no 's', 'w' or 'f' follows this number")
        if number and not 1 <= int(number) <= MAX_REPEATS:
            _fail(text, match.start(1), f"a repeat count is 1 to {MAX_REPEATS}")
        sublayers += letters * int(number or 1)
    return sublayers


def _fail(text: str, position: int, problem: str) -> NoReturn:
    marked = f"{text[:position]}>>{text[position]}<<{text[position + 1 :]}"
    raise ValueError(f"layout '{text}', character {position + 1} ({marked}): {problem}")


def _compress(sublayers: str) -> str:
    """``sfsfss`` -> ``2sf 2s``, ``sfwfwfsfwfwfsf`` -> ``2sfwfwf sf``: the longest repeat from each place on."""
    layers, texts = group_sublayers(sublayers), list[str]()
    while layers:
        repeats = [(_count_repeats(layers, size) * size, -size) for size in range(1, len(layers) // 2 + 1)]
        length, size = max([(length, size) for length, size in repeats if length > -size], default=(1, -1))
        count = length // -size
        texts.append((str(count) if count > 1 else "") + "".join(layers[:-size]))
        del layers[:length]
    return " ".join(texts)


def _count_repeats(layers: list[str], size: int) -> int:
    """How often the first ``size`` layers stand one after the other at the beginning."""
    unit = layers[:size]
    return next(n for n in itertools.count(1) if layers[n * size : (n + 1) * size] != unit)

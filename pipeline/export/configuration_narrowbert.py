"""NarrowBERT's configuration for transformers (5.18 or newer). Self-contained: copied beside exported weights.

Source: Li, Keung, Cheng, Kasai, Smith, "NarrowBERT: Accelerating Masked Language Model Pretraining
and Inference", ACL 2023, arXiv 2301.04761.
"""

import re
from typing import Any, NoReturn

from transformers.configuration_utils import PreTrainedConfig

MAX_REPEATS = 1000  # a slip of the finger must not ask for a billion layers
_GROUP = re.compile(r"\s*([0-9]*)([sf]*)")


class NarrowBertConfig(PreTrainedConfig):
    """Shape of a NarrowBERT encoder. The defaults are the paper's released model.

    Args:
        layout: The paper's notation for the whole encoder, such as ``"2sf:10sf"`` (SparseQueries),
            ``"2sf 10s:10f"`` (ContextFirst) or ``"12sf"`` (plain BERT): ``s`` is a self-attention
            sublayer, ``f`` a feed-forward sublayer, a number repeats the letters after it. Left of
            ``:`` every position is computed, right of it the narrow positions only.
        mask_token_id: Positions that hold this id are what the masked-LM model predicts when it is
            given neither labels nor narrow positions.

    The remaining arguments are those of ``BertConfig``. ``num_hidden_layers`` is not one of them: the
    layout says it.

    Raises:
        ValueError: a layout that cannot be read (one line that shows the character), or a hidden
            size that the attention heads do not divide.
    """

    model_type = "narrowbert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        layout: str = "2sf:10sf",
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        cls_token_id: int | None = 101,
        sep_token_id: int | None = 102,
        mask_token_id: int | None = 103,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {num_attention_heads} attention heads")
        parse_layout(layout)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.layout = layout
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.mask_token_id = mask_token_id
        self.tie_word_embeddings = tie_word_embeddings

    @property
    def num_hidden_layers(self) -> int:
        """Self-attention sublayers on both sides of ``:``, which is how the paper counts layers."""
        full, narrow = parse_layout(self.layout)
        return (full + narrow).count("s")

    @property
    def full_layers(self) -> list[str]:
        """The layers left of ``:``, each ``"sf"``, ``"s"`` or ``"f"``."""
        return group_sublayers(parse_layout(self.layout)[0])

    @property
    def narrow_layers(self) -> list[str]:
        """The layers right of ``:``, each ``"sf"``, ``"s"`` or ``"f"``; empty for plain BERT."""
        return group_sublayers(parse_layout(self.layout)[1])


def group_sublayers(sublayers: str) -> list[str]:
    """``"sfsff"`` -> ``["sf", "sf", "f"]``: an attention and the feed-forward after it are one layer."""
    return re.findall("sf|s|f", sublayers)


def parse_layout(layout: str) -> tuple[str, str]:
    """``"2sf:10sf"`` -> the sublayers left and right of the narrowing point, one letter each.

    Raises:
        ValueError: one line that shows the first character that does not fit.
    """
    left, _, right = layout.partition(":")
    if ":" in right:
        _fail(layout, layout.index(":", len(left) + 1), "a second ':' (one narrowing point at most)")
    full = _parse_side(layout, 0, len(left))
    narrow = _parse_side(layout, len(left) + 1, len(layout))
    if "s" not in full + narrow:
        raise ValueError(f"layout '{layout}' has no attention sublayer: write for example '12sf' or '2sf:10sf'")
    return full, narrow


def _parse_side(layout: str, start: int, end: int) -> str:
    sublayers = ""
    while layout[start:end].strip():
        match = _GROUP.match(layout, start, end)
        assert match is not None  # the pattern matches the empty string
        (number, letters), start = match.groups(), match.end()
        if not letters and start < end and not layout[start].isspace():
            _fail(layout, start, "expected 's' or 'f', with an optional number before")
        if not letters:
            _fail(layout, start - 1, "no 's' or 'f' follows this number")
        if number and not 1 <= int(number) <= MAX_REPEATS:
            _fail(layout, match.start(1), f"a repeat count is 1 to {MAX_REPEATS}")
        sublayers += letters * int(number or 1)
    return sublayers


def _fail(layout: str, position: int, problem: str) -> NoReturn:
    marked = f"{layout[:position]}>>{layout[position]}<<{layout[position + 1 :]}"
    raise ValueError(f"layout '{layout}', character {position + 1} ({marked}): {problem}")

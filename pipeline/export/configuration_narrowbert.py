"""NarrowBERT's configuration for transformers (5.18 or newer). Self-contained: copied beside exported weights.

Source: Li, Keung, Cheng, Kasai, Smith, "NarrowBERT: Accelerating Masked Language Model Pretraining
and Inference", ACL 2023, arXiv 2301.04761.
"""

import re
from typing import Any, NoReturn

from transformers.configuration_utils import PreTrainedConfig

MAX_REPEATS = 1000  # a slip of the finger must not ask for a billion layers
_GROUP = re.compile(r"\s*([0-9]*)([swf]*)")
ATTENTIONS = "sw"  # over the whole row, and over a window of it


class NarrowBertConfig(PreTrainedConfig):
    """Shape of a NarrowBERT encoder. The defaults are the paper's released model.

    Args:
        layout: The paper's notation for the whole encoder, such as ``"2sf:10sf"`` (SparseQueries),
            ``"2sf 10s:10f"`` (ContextFirst) or ``"12sf"`` (plain BERT): ``s`` is a self-attention
            sublayer, ``f`` a feed-forward sublayer, a number repeats the letters after it. Left of
            ``:`` every position is computed, right of it the narrow positions only. ``w`` is a self-attention
            sublayer over a window, left of ``:`` alone.
        hidden_act: A name of transformers' activations, or ``"geglu"`` or ``"swiglu"`` for gated
            feed-forward sublayers (Shazeer 2020); the head of those takes ``"gelu"``.
        normalization: ``"post"`` (BERT) or ``"pre"``: the norm before each sublayer, one more of the state
            that the narrow layers read, and one at the end.
        skip_first_norm: Whether the first sublayer left of ``:`` has none: the embeddings that it reads have one.
        norm: ``"layernorm"`` or ``"rmsnorm"``; ``layer_norm_eps`` is the epsilon of either.
        position_embedding_type: ``"absolute"`` (BERT), ``"rope"`` (Su et al. 2021) or ``"alibi"`` (Press et
            al. 2022).
        rope_theta: Base of the wavelengths of ``"rope"``.
        attention_window: Width of the window of a ``w``, even: a position sees those at most half as far away.
        local_rope_theta: Base of the wavelengths of ``"rope"`` there.
        bias: Whether linear layers and layer norms have a bias. The decoder has one in any case.
        narrow_kv: Which narrow attention sublayers share keys and values: none (``"per_layer"``), all
            (``"shared"``) or each N in a row (``"grouped:N"``).
        mask_token_id: Positions that hold this id are what the masked-LM model predicts when it is
            given neither labels nor narrow positions.

    The remaining arguments are those of ``BertConfig``. ``num_hidden_layers`` is not one of them: the
    layout says it.

    Raises:
        ValueError: a layout that cannot be read (one line that shows the character), or a hidden
            size that the attention heads do not divide, or an option that does not exist.
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
        normalization: str = "post",
        skip_first_norm: bool = False,
        norm: str = "layernorm",
        position_embedding_type: str = "absolute",
        rope_theta: float = 10000.0,
        attention_window: int = 128,
        local_rope_theta: float = 10000.0,
        bias: bool = True,
        narrow_kv: str = "per_layer",
        pad_token_id: int | None = 0,
        cls_token_id: int | None = 101,
        sep_token_id: int | None = 102,
        mask_token_id: int | None = 103,
        tie_word_embeddings: bool = True,
        classifier_dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
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
        self.normalization = normalization
        self.skip_first_norm = skip_first_norm
        self.norm = norm
        self.position_embedding_type = position_embedding_type
        self.rope_theta = rope_theta
        self.attention_window = attention_window
        self.local_rope_theta = local_rope_theta
        self.bias = bias
        self.narrow_kv = narrow_kv
        self.pad_token_id = pad_token_id
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.mask_token_id = mask_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.classifier_dropout = classifier_dropout
        self._check()

    def _check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} attention heads"
            )
        if self.position_embedding_type == "rope" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(f"rope needs an even head size, it is {self.hidden_size // self.num_attention_heads}")
        for name, choices in (
            ("normalization", ("post", "pre")),
            ("norm", ("layernorm", "rmsnorm")),
            ("position_embedding_type", ("absolute", "rope", "alibi")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is '{getattr(self, name)}', expected one of {', '.join(choices)}")
        if self.attention_window < 2 or self.attention_window % 2:
            raise ValueError(f"attention_window is {self.attention_window}, expected an even number of at least 2")
        kv_projections(self.narrow_kv, 1)
        if self.skip_first_norm and (self.normalization != "pre" or not parse_layout(self.layout)[0]):
            raise ValueError("skip_first_norm needs normalization 'pre' and a sublayer left of ':'")
        parse_layout(self.layout)

    @property
    def head_dropout(self) -> float:
        """Dropout before a classifier: ``classifier_dropout``, or that of the hidden states."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def num_hidden_layers(self) -> int:
        """Self-attention sublayers on both sides of ``:``, which is how the paper counts layers."""
        full, narrow = parse_layout(self.layout)
        return sum(letter in ATTENTIONS for letter in full + narrow)

    @num_hidden_layers.setter
    def num_hidden_layers(self, number: int) -> None:
        if number != self.num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers {number}: the layout '{self.layout}' has {self.num_hidden_layers} layers; give "
                "another layout"
            )

    @property
    def full_layers(self) -> list[str]:
        """The layers left of ``:``, each ``"sf"``, ``"wf"``, ``"s"``, ``"w"`` or ``"f"``."""
        return group_sublayers(parse_layout(self.layout)[0])

    @property
    def narrow_layers(self) -> list[str]:
        """The layers right of ``:``, each ``"sf"``, ``"s"`` or ``"f"``; empty for plain BERT."""
        return group_sublayers(parse_layout(self.layout)[1])

    @property
    def narrow_kv_owners(self) -> list[int]:
        """Numbers of the narrow layers with keys and values of their own; others use those of the one before."""
        attentions = [number for number, sublayers in enumerate(self.narrow_layers) if "s" in sublayers]
        projections = kv_projections(self.narrow_kv, len(attentions))
        return [attentions[projections.index(projection)] for projection in sorted(set(projections))]


def group_sublayers(sublayers: str) -> list[str]:
    """``"sfwff"`` -> ``["sf", "wf", "f"]``: an attention and the feed-forward after it are one layer."""
    return re.findall("[sw]f|[swf]", sublayers)


def kv_projections(narrow_kv: str, num_narrow: int) -> list[int]:
    """Which key/value projection each of ``num_narrow`` narrow attention sublayers reads.

    Raises:
        ValueError: a text that is none of per_layer, shared, grouped:N.
    """
    if narrow_kv == "shared":
        return [0] * num_narrow
    matched = re.fullmatch(r"per_layer|grouped:([1-9][0-9]*)", narrow_kv)
    if matched is None:
        raise ValueError(f"'{narrow_kv}' is none of per_layer, shared, grouped:N (such as grouped:2)")
    return [index // int(matched[1] or 1) for index in range(num_narrow)]


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
    if not set(ATTENTIONS) & set(full + narrow):
        raise ValueError(f"layout '{layout}' has no attention sublayer: write for example '12sf' or '2sf:10sf'")
    if "w" in narrow:
        _fail(
            layout,
            layout.index("w", layout.index(":")),
            "'w' is a sublayer of full rows: right of ':' a position reads the frozen state of the whole row ('s')",
        )
    return full, narrow


def _parse_side(layout: str, start: int, end: int) -> str:
    sublayers = ""
    while layout[start:end].strip():
        match = _GROUP.match(layout, start, end)
        assert match is not None  # the pattern matches the empty string
        (number, letters), start = match.groups(), match.end()
        if not letters and start < end and not layout[start].isspace():
            _fail(layout, start, "expected 's', 'w' or 'f', with an optional number before")
        if not letters:
            _fail(layout, start - 1, "no 's', 'w' or 'f' follows this number")
        if number and not 1 <= int(number) <= MAX_REPEATS:
            _fail(layout, match.start(1), f"a repeat count is 1 to {MAX_REPEATS}")
        sublayers += letters * int(number or 1)
    return sublayers


def _fail(layout: str, position: int, problem: str) -> NoReturn:
    marked = f"{layout[:position]}>>{layout[position]}<<{layout[position + 1 :]}"
    raise ValueError(f"layout '{layout}', character {position + 1} ({marked}): {problem}")

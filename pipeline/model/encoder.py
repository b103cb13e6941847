"""One encoder for every layout: BERT, ContextFirst, SparseQueries and mixtures.

Shape suffixes: B rows, T positions of a row, N narrow positions, H hidden size, K attention
heads of this rank, D size of a head.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import ModelConfig
from pipeline.layout import group_sublayers, kv_projections, parse_layout
from pipeline.model.attention import FrozenKeyValue, FullAttention, NarrowAttention
from pipeline.model.feedforward import FeedForward
from pipeline.model.position import Rotation, alibi_slopes
from pipeline.model.sublayer import build_norm
from pipeline.model.visibility import Visibility, visibility
from pipeline.parallel.groups import tensor_parallel_group
from pipeline.parallel.layers import Initializer


class Encoder(nn.Module):
    """Runs the full sublayers, gathers the narrow rows, runs the narrow sublayers on them.

    In pre-norm the frozen state is normalised once for all keys and values, and the result ends in a norm.
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__()
        self.config = config
        self.layout = parse_layout(config.layout)
        self.full_sublayers = nn.ModuleList(
            FullAttention(config, init_method) if letter == "s" else FeedForward(config, init_method)
            for letter in self.layout.full
        )
        self.narrow_sublayers = nn.ModuleList(
            NarrowAttention(config, init_method) if letter == "s" else FeedForward(config, init_method)
            for letter in self.layout.narrow
        )
        self.kv_projections = kv_projections(config.narrow_kv, self.layout.narrow.count("s"))
        num_projections = len(set(self.kv_projections))
        is_pre_norm = config.normalization == "pre"
        self.frozen_norm = build_norm(config) if is_pre_norm and num_projections else None
        self.narrow_kv = FrozenKeyValue(config, num_projections, init_method) if num_projections else None
        self.final_norm = build_norm(config) if is_pre_norm else None

    def forward(
        self,
        state_BTH: torch.Tensor,
        narrow_positions_BN: torch.Tensor,
        key_mask_B11T: torch.Tensor | None,
        document_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode rows and return the narrow positions only.

        Args:
            state_BTH: embedded rows.
            narrow_positions_BN: positions in 0..T-1, int64. A repeated position is computed twice.
            key_mask_B11T: True where a key is a real token; None if every one is.
            document_ids_BT: attention stays between tokens of equal ids; None: it knows no documents.

        Returns:
            [B, N, H].
        """
        everything_T = torch.arange(state_BTH.shape[1], device=state_BTH.device)
        see = functools.partial(self._visibility, state_BTH, key_mask_B11T, document_ids_BT)
        rotation = self._rotation(everything_T, state_BTH.dtype)
        seen = see(everything_T) if "s" in self.layout.full else Visibility()
        for group in _groups(self.full_sublayers, self.layout.full):
            state_BTH = self._run(functools.partial(_run_full, group, seen, rotation), state_BTH)
        narrow_BNH = gather_rows(state_BTH, narrow_positions_BN)
        keys_values: list[tuple[torch.Tensor, torch.Tensor]] = []
        seen, narrow_rotation = Visibility(), None
        if self.narrow_kv is not None:
            frozen_BTH = state_BTH if self.frozen_norm is None else self.frozen_norm(state_BTH)
            keys_values = self.narrow_kv(frozen_BTH, rotation)
            seen = see(narrow_positions_BN)
            narrow_rotation = self._rotation(narrow_positions_BN, state_BTH.dtype)
        projections = iter(self.kv_projections)
        for group in _groups(self.narrow_sublayers, self.layout.narrow):
            kv = keys_values[next(projections)] if isinstance(group[0], NarrowAttention) else ()
            narrow_BNH = self._run(functools.partial(_run_narrow, group, seen, narrow_rotation), narrow_BNH, *kv)
        return narrow_BNH if self.final_norm is None else self.final_norm(narrow_BNH)

    def _run(self, group: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        if not (self.config.recompute and torch.is_grad_enabled()):
            return group(*inputs)
        # Only the inputs are kept. The keys and values of the frozen state are inputs, so they are not
        # computed again. Re-entrant, because ZeRO 3 frees weights after each forward pass: here the second
        # pass builds a graph of its own, with the hooks that gather them again.
        output = checkpoint(group, *inputs, use_reentrant=True, preserve_rng_state=True)
        assert isinstance(output, torch.Tensor)
        return output

    def _rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation | None:
        config = self.config
        if config.position != "rope":
            return None
        return Rotation(positions, config.hidden_size // config.num_attention_heads, config.rotary_base, dtype)

    def _visibility(
        self,
        state_BTH: torch.Tensor,
        key_mask_B11T: torch.Tensor | None,
        document_ids_BT: torch.Tensor | None,
        positions: torch.Tensor,
    ) -> Visibility:
        config, slopes_K = self.config, None
        if config.position == "alibi":
            group = tensor_parallel_group()
            slopes_K = alibi_slopes(config.num_attention_heads, state_BTH.device).chunk(group.size())[group.rank()]
        has_dropout = self.training and config.attention_dropout > 0
        return visibility(
            key_mask_B11T,
            document_ids_BT,
            slopes_K,
            positions,
            state_BTH.shape[1],
            state_BTH.dtype,
            use_blocks=state_BTH.is_cuda and not has_dropout,
        )


def _groups(sublayers: nn.ModuleList, letters: str) -> list[Sequence[nn.Module]]:
    """The sublayers as layers: an attention and the feed-forward after it, or one of them alone."""
    remaining = iter(sublayers)
    return [[next(remaining) for _ in group] for group in group_sublayers(letters)]


def _run_full(
    group: Sequence[nn.Module], seen: Visibility, rotation: Rotation | None, state_BTH: torch.Tensor
) -> torch.Tensor:
    for sublayer in group:
        is_attention = isinstance(sublayer, FullAttention)
        state_BTH = sublayer(state_BTH, seen, rotation) if is_attention else sublayer(state_BTH)
    return state_BTH


def _run_narrow(
    group: Sequence[nn.Module],
    seen: Visibility,
    rotation: Rotation | None,
    narrow_BNH: torch.Tensor,
    *key_value: torch.Tensor,
) -> torch.Tensor:
    for sublayer in group:
        is_attention = isinstance(sublayer, NarrowAttention)
        narrow_BNH = sublayer(narrow_BNH, *key_value, seen, rotation) if is_attention else sublayer(narrow_BNH)
    return narrow_BNH


def gather_rows(state_BTH: torch.Tensor, positions_BN: torch.Tensor) -> torch.Tensor:
    """Pick ``positions`` of each row: [B, T, H], [B, N] -> [B, N, H]."""
    rows, length, hidden = state_BTH.shape
    # Row indices into the flattened state: index_select copies whole rows, gather single numbers.
    first = torch.arange(0, rows * length, length, device=positions_BN.device).unsqueeze(1)
    flat = (positions_BN + first).flatten()
    return state_BTH.reshape(-1, hidden).index_select(0, flat).unflatten(0, positions_BN.shape)

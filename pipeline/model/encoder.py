"""One encoder for every layout: BERT, ContextFirst, SparseQueries and mixtures.

Shape suffixes: B rows of a batch, S tokens of a row, P narrow positions of a row, H ``hidden_size``, A attention
heads of this rank, D size of a head.
"""

from collections.abc import Callable, Sequence
from typing import TypeVarTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import ModelConfig
from pipeline.layout import ATTENTIONS, group_sublayers, kv_projections, parse_layout
from pipeline.model.attention import FrozenKeyValue, FullAttention, NarrowAttention
from pipeline.model.attention_mask import AttentionMask, attention_mask
from pipeline.model.feedforward import FeedForward
from pipeline.model.linear_and_norm import build_norm
from pipeline.model.parameters import takes_blocks
from pipeline.model.position import Rotation, build_rotation, build_slopes
from pipeline.parallel.layers import Initializer

Inputs = TypeVarTuple("Inputs")


class Encoder(nn.Module):
    """Runs the full layers, gathers the narrow positions, runs the narrow layers on them.

    In pre-norm the frozen state is normalised once for all keys and values, and the result ends in a norm.
    """

    def __init__(self, config: ModelConfig, init_method: Initializer) -> None:
        super().__init__()
        self.config = config
        self.layout = parse_layout(config.layout)
        self.full_sublayers = nn.ModuleList(
            FullAttention(config, init_method) if letter in ATTENTIONS else FeedForward(config, init_method)
            for letter in self.layout.full
        )
        self.narrow_sublayers = nn.ModuleList(
            NarrowAttention(config, init_method) if letter == "s" else FeedForward(config, init_method)
            for letter in self.layout.narrow
        )
        self.projection_of_attention = kv_projections(config.narrow_kv, self.layout.narrow.count("s"))
        num_projections = len(set(self.projection_of_attention))
        if config.skip_first_norm:
            self.full_sublayers[0].norm = nn.Identity()
        is_pre_norm = config.normalization == "pre"
        self.frozen_norm = build_norm(config) if is_pre_norm and num_projections else None
        self.narrow_kv = FrozenKeyValue(config, num_projections, init_method) if num_projections else None
        self.final_norm = build_norm(config) if is_pre_norm else None

    def forward(
        self,
        state_BSH: torch.Tensor,
        narrow_positions_BP: torch.Tensor,
        key_mask_B11S: torch.Tensor | None,
        document_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode rows and return the narrow positions only.

        Args:
            state_BSH: embedded rows.
            narrow_positions_BP: positions in 0..S-1, int64. A repeated position is computed twice.
            key_mask_B11S: True where a key is a real token; None if every one is.
            document_ids_BS: attention stays between tokens of equal ids; None: it knows no documents.

        Returns:
            [B, P, H].
        """
        # Left of the narrowing point every position is computed.
        positions_S = torch.arange(state_BSH.shape[1], device=state_BSH.device)
        rotation = build_rotation(self.config, positions_S, state_BSH.dtype)
        views: dict[str, tuple[AttentionMask, Rotation | None]] = {"f": (AttentionMask(), None)}
        if "s" in self.layout.full:
            views["s"] = self._mask(state_BSH, positions_S, key_mask_B11S, document_ids_BS), rotation
        if "w" in self.layout.full:
            local = build_rotation(self.config, positions_S, state_BSH.dtype, is_local=True)
            radius = self.config.attention_window // 2
            views["w"] = self._mask(state_BSH, positions_S, key_mask_B11S, document_ids_BS, radius), local
        groups = group_sublayers(self.layout.full)
        for group, layer in zip(groups, _layers(self.full_sublayers, groups), strict=True):
            state_BSH = self._run(_full_layer, layer, state_BSH, *views[group[0]])

        # Here the state is frozen. Its keys and values serve all narrow layers.
        narrow_BPH = gather_positions(state_BSH, narrow_positions_BP)
        keys_values, narrow_mask, narrow_rotation = [], AttentionMask(), None
        if self.narrow_kv is not None:
            frozen_BSH = state_BSH if self.frozen_norm is None else self.frozen_norm(state_BSH)
            keys_values = self.narrow_kv(frozen_BSH, rotation)
            narrow_mask = self._mask(state_BSH, narrow_positions_BP, key_mask_B11S, document_ids_BS)
            narrow_rotation = build_rotation(self.config, narrow_positions_BP, state_BSH.dtype)

        # Right of the narrowing point the narrow positions alone are computed.
        num_attentions = 0
        for layer in _layers(self.narrow_sublayers, group_sublayers(self.layout.narrow)):
            if isinstance(layer[0], NarrowAttention):
                k_BASD, v_BASD = keys_values[self.projection_of_attention[num_attentions]]
                narrow_BPH = self._run(_narrow_layer, layer, narrow_BPH, k_BASD, v_BASD, narrow_mask, narrow_rotation)
                num_attentions += 1
            else:
                narrow_BPH = self._run(_feed_forward_alone, layer, narrow_BPH)
        return narrow_BPH if self.final_norm is None else self.final_norm(narrow_BPH)

    def _run(self, layer_function: Callable[[*Inputs], torch.Tensor], *inputs: *Inputs) -> torch.Tensor:
        if not (self.config.recompute and torch.is_grad_enabled()):
            return layer_function(*inputs)
        # Only the inputs are kept. The keys and values of the frozen state are inputs, so they are not
        # computed again. Re-entrant, because ZeRO 3 frees weights after each forward pass: here the second
        # pass builds a graph of its own, with the hooks that gather them again.
        output = checkpoint(layer_function, *inputs, use_reentrant=True, preserve_rng_state=True)
        assert isinstance(output, torch.Tensor)
        return output

    def _mask(
        self,
        state_BSH: torch.Tensor,
        positions: torch.Tensor,
        key_mask_B11S: torch.Tensor | None,
        document_ids_BS: torch.Tensor | None,
        radius: int | None = None,
    ) -> AttentionMask:
        """Mask of the queries at ``positions``, [S] or [B, P]; ``radius`` is that of the window, if they have one."""
        return attention_mask(
            key_mask_B11S,
            document_ids_BS,
            build_slopes(self.config, state_BSH.device),
            positions,
            state_BSH.shape[1],
            state_BSH.dtype,
            use_blocks=state_BSH.is_cuda and (takes_blocks(self.config) or not self.training),
            radius=radius,
        )


def gather_positions(state_BSH: torch.Tensor, positions_BP: torch.Tensor) -> torch.Tensor:
    """Pick ``positions`` of each row: [B, S, H], [B, P] -> [B, P, H]."""
    num_rows, seq_length, hidden_size = state_BSH.shape
    # Indices into the flattened state: index_select copies whole positions, gather single numbers.
    first_B1 = torch.arange(0, num_rows * seq_length, seq_length, device=positions_BP.device).unsqueeze(1)
    flat = (positions_BP + first_B1).flatten()
    return state_BSH.reshape(-1, hidden_size).index_select(0, flat).unflatten(0, positions_BP.shape)


def _layers(sublayers: nn.ModuleList, groups: Sequence[str]) -> list[Sequence[nn.Module]]:
    """The sublayers as layers: an attention and the feed-forward after it, or one of them alone."""
    remaining = iter(sublayers)
    return [[next(remaining) for _ in group] for group in groups]


def _full_layer(
    layer: Sequence[nn.Module], state_BSH: torch.Tensor, mask: AttentionMask, rotation: Rotation | None
) -> torch.Tensor:
    for sublayer in layer:
        is_attention = isinstance(sublayer, FullAttention)
        state_BSH = sublayer(state_BSH, mask, rotation) if is_attention else sublayer(state_BSH)
    return state_BSH


def _narrow_layer(
    layer: Sequence[nn.Module],
    narrow_BPH: torch.Tensor,
    k_BASD: torch.Tensor,
    v_BASD: torch.Tensor,
    mask: AttentionMask,
    rotation: Rotation | None,
) -> torch.Tensor:
    attention, *feed_forward = layer
    narrow_BPH = attention(narrow_BPH, k_BASD, v_BASD, mask, rotation)
    return feed_forward[0](narrow_BPH) if feed_forward else narrow_BPH


def _feed_forward_alone(layer: Sequence[nn.Module], state: torch.Tensor) -> torch.Tensor:
    return layer[0](state)

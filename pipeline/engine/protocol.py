"""What the project uses of ``deepspeed.DeepSpeedEngine``, typed: DeepSpeed itself gives no types."""

from typing import Protocol

import torch

from pipeline.model.masked_lm import MaskedLMOutput, NarrowBertForPretraining


class LossScaler(Protocol):
    """fp16's dynamic loss scaling."""

    cur_scale: float
    cur_hysteresis: int
    cur_iter: int
    last_overflow_iter: int
    raise_error_at_min_scale: bool


class FragmentAddress(Protocol):
    """Where a fragment lies in its flattened parameter."""

    start: int
    numel: int


class FragmentMapping(Protocol):
    """The fragment of a parameter that ZeRO 1 or 2 has given to this rank."""

    lp_fragment_address: FragmentAddress

    def get_hp_fragment(self, optim_state_key: str | None = None) -> torch.Tensor:
        """The fp32 weights, or the moments under a key, of the fragment."""
        ...


class EngineOptimizer(Protocol):
    """AdamW, or with ZeRO DeepSpeed's wrapping of it."""

    param_groups: list[dict[str, float]]
    """Settings of each parameter group; ``lr`` is set before each step."""
    state: dict[torch.Tensor, dict[str, torch.Tensor]]
    """Moments of each parameter; ZeRO 0 only."""
    found_inf: torch.Tensor
    """1 where the gradients are not finite: the fused AdamW then changes nothing; ZeRO 0 only."""
    optimizer: torch.optim.AdamW
    """The wrapped one; ZeRO 1, 2 and 3 only."""
    fp32_partitioned_groups_flat: list[torch.Tensor]
    """Weights that this rank updates; ZeRO 3 only."""
    gradient_accumulation_steps: int
    """Micro-batches of a rank in a step; ZeRO 1, 2 and 3 only."""
    overflow: bool
    """Whether the newest update was skipped; ZeRO 1, 2 and 3 only."""
    averaged_gradients: dict[int, list[torch.Tensor] | None]
    """Gradients of this rank's part of each parameter group; ZeRO 1 and 2 only."""
    all_grad_tensors: dict[int, list[torch.Tensor] | None]
    """Their sums over micro-batches; ZeRO 1 and 2 only."""
    loss_scale: float
    """By which the loss is multiplied; fp16 only."""
    loss_scaler: LossScaler
    """Changes ``loss_scale``; fp16 only."""
    _hp_optimizer_states_linked: bool

    def _lazy_init_hp_params_optimizer_state(self) -> None: ...


class ForwardPass(Protocol):
    """The training model as an objective calls it: ``NarrowBertForPretraining.forward`` in DeepSpeed's wrapping."""

    def __call__(
        self,
        input_ids: torch.Tensor,
        narrow_positions: torch.Tensor,
        key_mask: torch.Tensor | None,
        labels: torch.Tensor,
        label_mask: torch.Tensor,
        document_ids: torch.Tensor | None = None,
        *,
        return_logits: bool = False,
    ) -> MaskedLMOutput:
        """One forward pass; shapes as in ``Batch``."""
        ...


class Engine(ForwardPass, Protocol):
    """A model in training: forward, backward and update, whatever is distributed and in whatever precision."""

    global_steps: int
    """Steps done, for DeepSpeed's own account."""
    micro_steps: int
    """Micro-batches done since ``begin_step``."""

    @property
    def module(self) -> NarrowBertForPretraining:
        """The wrapped model."""
        ...

    @property
    def optimizer(self) -> EngineOptimizer:
        """What updates its weights."""
        ...

    def backward(self, loss: torch.Tensor) -> torch.Tensor | None:
        """Add the gradients of a micro-batch's scalar ``loss``, averaged over ranks and micro-batches."""
        ...

    def step(self) -> None:
        """End a micro-batch; after the last of a step, update the weights."""
        ...

    def train_micro_batch_size_per_gpu(self) -> int:
        """Rows of a micro-batch."""
        ...

    def set_train_batch_size(self, train_batch_size: int) -> None:
        """Rows of a step over all ranks: whole micro-batches."""
        ...

    def is_gradient_accumulation_boundary(self) -> bool:
        """Whether this is the last micro-batch of a step."""
        ...

    def get_global_grad_norm(self) -> torch.Tensor | float:
        """Gradient norm of all ranks before clipping; with ZeRO only."""
        ...

    def zero_optimization_stage(self) -> int:
        """0, 1, 2 or 3."""
        ...

    def fp16_enabled(self) -> bool:
        """Whether the loss is scaled."""
        ...

    def destroy(self) -> None:
        """Remove DeepSpeed's hooks and buffers."""
        ...

"""The learning rate as one pure function of the step. Imports no torch."""

import math

from pipeline.config import OptimizerConfig


def learning_rate(step: int, train_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0).

    Rises linearly over the warm-up and stays at ``lr`` until the decay begins. Over the last ``lr_decay_fraction`` of
    the steps it falls to ``min_lr``, which it reaches at ``train_steps``. With a fraction below 1 this is the
    warm-up, stable, decay of Hu et al. 2024 (MiniCPM, section 4); ``sqrt`` is the decay of Hägele et al. 2024,
    1 - sqrt(progress).
    """
    warmup = warmup_steps(train_steps, config)
    if step < warmup:
        # Step 0 already learns: a rate of exactly 0 would waste the first batch.
        return config.lr * (step + 1) / warmup
    begin = decay_begin(train_steps, config)
    if step < begin:
        return config.lr
    progress = min(1.0, (step - begin) / max(1, train_steps - begin))
    return config.min_lr + (config.lr - config.min_lr) * _left(progress, config.lr_decay_style)


def warmup_steps(train_steps: int, config: OptimizerConfig) -> int:
    """Steps over which the rate rises."""
    if config.lr_warmup_steps is not None:
        return config.lr_warmup_steps
    return math.ceil(config.lr_warmup_fraction * train_steps)


def decay_begin(train_steps: int, config: OptimizerConfig) -> int:
    """The first step of the decay; ``train_steps`` where the rate never falls."""
    decaying = 0 if config.lr_decay_style == "constant" else math.ceil(config.lr_decay_fraction * train_steps)
    return max(warmup_steps(train_steps, config), train_steps - decaying)


def first_other_rate(
    steps: int, there: tuple[int, OptimizerConfig], here: tuple[int, OptimizerConfig]
) -> tuple[int, float, float] | None:
    """The first of ``steps`` steps whose rate differs between two schedules; None where all are equal.

    Args:
        steps: steps that are done.
        there: train_steps and settings of one schedule.
        here: and of the other.

    Returns:
        The step, its rate there, its rate here.
    """
    for step in range(steps):
        old, new = learning_rate(step, *there), learning_rate(step, *here)
        if old != new:
            return step, old, new
    return None


def _left(progress: float, style: str) -> float:
    """Share of the way down that is still to go."""
    if style == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - (math.sqrt(progress) if style == "sqrt" else progress)

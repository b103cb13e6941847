"""The only DeepSpeed dictionary of the project."""

from typing import TypeAlias

import torch

from pipeline.config import BUCKET_ELEMENTS, LIVE_ELEMENTS, RunConfig, adds_in_fp32, micro_batches

DeepSpeedConfig: TypeAlias = "dict[str, bool | int | float | str | DeepSpeedConfig | None]"


def deepspeed_config(config: RunConfig, data_parallel_size: int) -> DeepSpeedConfig:
    """The engine's dictionary. DeepSpeed ignores unknown keys without a word, so none comes from a user."""
    training = config.training
    accumulation = micro_batches(training, data_parallel_size)
    zero: DeepSpeedConfig = {
        "stage": training.zero_stage,
        # A sublayer's gradients are summed while the backward pass goes on. On CPU both would share the same cores.
        "overlap_comm": torch.cuda.is_available(),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_max_live_parameters": LIVE_ELEMENTS,
        "stage3_max_reuse_distance": LIVE_ELEMENTS,
    }
    if training.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        # Without ZeRO the gradients are clipped here (update_weights): DeepSpeed would not tell their norm.
        "gradient_clipping": config.optimizer.clip_grad if training.zero_stage else 0.0,
        "zero_optimization": zero,
        "data_types": {"grad_accum_dtype": "fp32" if adds_in_fp32(training, data_parallel_size) else None},
        # Steps whose gradients are not finite are skipped and counted in bf16 as well.
        "bf16": {"enabled": training.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": training.precision == "fp16", "loss_scale": 0, "initial_scale_power": 16},
        # torch's own AdamW: nothing to compile, the same on CPU and CUDA, offloaded or not.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # They would wait for the device twice in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }

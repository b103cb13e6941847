"""The checks across the fields of a run's configuration. Imports no torch."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.config import InitConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.layout import kv_projections, parse_layout

MAX_PIECES = 16
"""Pairs of a schedule of rows; each is another shape of tensors, compiled before the first step."""


def check_config(config: RunConfig, *, world_size: int) -> None:
    """Refuse values that cannot work together, before anything is started.

    Raises:
        UserError: the first problem, with the values that would do.
    """
    if world_size < 1:
        raise UserError(f"processes is {world_size}: give a positive number")
    _check_counts(config)
    _check_model(config.model, config.training.tensor_model_parallel_size)
    _check_ranges(config)
    _check_parallel(config, world_size)
    _check_warmup(config.training)
    _check_spikes(config.training)
    _check_batch(config.training, world_size // config.training.tensor_model_parallel_size)
    _check_init(config.init)
    if Path(config.run_dir).is_file():
        raise UserError(f"run_dir {config.run_dir} is a file: give a folder")


def _check_init(init: InitConfig) -> None:
    if init.from_huggingface is not None and init.from_run is not None:
        raise UserError("init.from_huggingface and init.from_run both name weights to start from: give one of them")
    if init.moments and init.from_run is None:
        raise UserError("init.moments takes the optimizer's moments of init.from_run: give that as well, or neither")
    if init.from_run is not None and set(init.allow) - {"layout"}:
        raise UserError(
            f"init.allow is {list(init.allow)}: of init.from_run only [layout] may differ; for other differences "
            "export that run and give the export as init.from_huggingface"
        )
    if init.growth is not None and init.from_huggingface is None and init.from_run is None:
        raise UserError("init.growth says how init.from_huggingface or init.from_run grows: give one of them as well")
    if init.growth is not None and init.moments:
        raise UserError("init.growth makes new weights, which have no moments: leave out init.moments, and warm up")
    if init.growth is None and init.depth != InitConfig().depth:
        raise UserError("init.depth says how a model grows deeper: give init.growth as well, or neither")
    if init.allow and init.from_huggingface is None and init.from_run is None:
        raise UserError("init.allow says what may differ in init.from_huggingface: give that as well, or neither")


def _check_model(model: ModelConfig, tensor_size: int) -> None:
    try:
        parse_layout(model.layout)
    except ValueError as error:
        raise UserError(f"model.layout: {error}") from error
    try:
        kv_projections(model.narrow_kv, 1)
    except ValueError as error:
        raise UserError(f"model.narrow_kv: {error}") from error
    for name in ("hidden_size", "num_attention_heads", "ffn_hidden_size", "max_position_embeddings"):
        if getattr(model, name) < 1:
            raise UserError(f"model.{name} is {getattr(model, name)}: give a positive number")
    if model.skip_first_norm and (model.normalization != "pre" or not parse_layout(model.layout).full):
        raise UserError(
            "model.skip_first_norm leaves out the norm before the first sublayer: it needs model.normalization pre and "
            "a sublayer left of the ':' in model.layout"
        )
    if model.attention_window < 2 or model.attention_window % 2:
        raise UserError(
            f"model.attention_window is {model.attention_window}: give an even number of at least 2, half of which is "
            "seen on either side"
        )
    heads, hidden = model.num_attention_heads, model.hidden_size
    even = 2 if model.position == "rope" else 1  # a head's features must be a multiple of this
    fitting = [n for n in range(1, hidden + 1) if hidden % (n * even) == 0 and n % tensor_size == 0]
    take = f"num_attention_heads of {_some(fitting, heads)}" if fitting else "another hidden_size"
    if hidden % heads:
        raise UserError(f"model.num_attention_heads {heads} does not divide model.hidden_size {hidden}: take {take}")
    if hidden // heads % even:
        raise UserError(
            f"model.position rope turns pairs of features, but a head has {hidden // heads} (hidden_size / "
            f"num_attention_heads): take {take}, or position absolute or alibi"
        )


def _check_ranges(config: RunConfig) -> None:
    for name, value in [
        ("model.hidden_dropout", config.model.hidden_dropout),
        ("model.attention_dropout", config.model.attention_dropout),
        ("model.attention_output_dropout", config.model.attention_output_dropout or 0.0),
        ("optimizer.lr_warmup_fraction", config.optimizer.lr_warmup_fraction),
        ("optimizer.adam_beta1", config.optimizer.adam_beta1),
        ("optimizer.adam_beta2", config.optimizer.adam_beta2),
        ("optimizer.muon_momentum", config.optimizer.muon_momentum),
    ]:
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}: give a number of at least 0 and below 1")
    for name, value in [
        ("model.layernorm_epsilon", config.model.layernorm_epsilon),
        ("model.init_method_std", config.model.init_method_std),
        ("model.rotary_base", config.model.rotary_base),
        ("model.local_rotary_base", config.model.local_rotary_base),
        ("optimizer.lr", config.optimizer.lr),
        ("optimizer.adam_eps", config.optimizer.adam_eps),
    ]:
        if not value > 0:
            raise UserError(f"{name} is {value}: give a number above 0")
    for name, value in [
        ("optimizer.weight_decay", config.optimizer.weight_decay),
        ("optimizer.clip_grad", config.optimizer.clip_grad),
        ("optimizer.min_lr", config.optimizer.min_lr),
    ]:
        if not value >= 0:
            raise UserError(f"{name} is {value}: give a number of at least 0")
    if config.optimizer.min_lr > config.optimizer.lr:
        raise UserError(
            f"optimizer.min_lr is {config.optimizer.min_lr}, above optimizer.lr {config.optimizer.lr}: the rate would "
            "rise to the end; give at most optimizer.lr"
        )
    _check_schedule(config.optimizer, config.training.train_steps)
    _check_time_budget(config.optimizer, config.training.time_budget_hours)
    _check_mask_rates(config.training)
    for name, value in [("data.seed", config.data.seed), ("training.seed", config.training.seed)]:
        if not 0 <= value < 2**63:
            raise UserError(f"{name} is {value}: give a number from 0 to 2^63 - 1")


def _check_schedule(optimizer: OptimizerConfig, train_steps: int) -> None:
    if not 0 <= optimizer.lr_decay_fraction <= 1:
        raise UserError(f"optimizer.lr_decay_fraction is {optimizer.lr_decay_fraction}: give a number from 0 to 1")
    warmup = optimizer.lr_warmup_steps
    if warmup is not None and not 0 <= warmup < train_steps:
        raise UserError(
            f"optimizer.lr_warmup_steps is {warmup}: give a number of at least 0 and below training.train_steps "
            f"({train_steps})"
        )
    for name, value in [("min_lr", optimizer.min_lr), ("lr_decay_fraction", 1 - optimizer.lr_decay_fraction)]:
        if optimizer.lr_decay_style == "constant" and value:
            raise UserError(f"optimizer.{name} does nothing with lr_decay_style constant: leave it out")


def _check_time_budget(optimizer: OptimizerConfig, hours: float | None) -> None:
    if hours is None:
        return
    if not 0 < hours < math.inf:
        raise UserError(f"training.time_budget_hours is {hours}: give a number above 0")
    if optimizer.lr_decay_style == "constant" or not 0 < optimizer.lr_decay_fraction < 1:
        raise UserError(
            "training.time_budget_hours says when the decay begins, which a stable phase must come before: give "
            "optimizer.lr_decay_style linear, cosine or sqrt and an optimizer.lr_decay_fraction between 0 and 1, such "
            "as 0.2"
        )


def _check_mask_rates(training: TrainingConfig) -> None:
    _check_pairs("mask_rate", training.mask_rate)
    for name, rate in [("mask_rate", rate) for _, rate in training.mask_rate] + [
        ("eval_mask_rate", training.eval_mask_rate)
    ]:
        if not 0 < rate <= 1:
            raise UserError(f"training.{name} is {rate}: give a share of the tokens, above 0 and at most 1")


def _check_warmup(training: TrainingConfig) -> None:
    _check_pairs("batch_warmup", training.batch_warmup)
    rows = [rows for _, rows in training.batch_warmup]
    if rows and (min(rows) < 1 or max(rows) > training.global_batch_size or rows[-1] != training.global_batch_size):
        raise UserError(
            f"training.batch_warmup has steps of {rows} rows: give positive numbers up to global_batch_size "
            f"({training.global_batch_size}), and let it be the last"
        )


def _check_spikes(training: TrainingConfig) -> None:
    if not training.spike_sigma >= 0:
        raise UserError(f"training.spike_sigma is {training.spike_sigma}: give a number of at least 0")


def _check_pairs(name: str, pairs: tuple[tuple[int, float], ...]) -> None:
    """Whether the steps of a list of (step, value) begin with 0 and rise."""
    steps = [step for step, _ in pairs]
    if steps and (steps[0] != 0 or any(later <= step for step, later in itertools.pairwise(steps))):
        raise UserError(f"training.{name} has steps {steps}: begin with step 0 and let them rise")
    if len(steps) > MAX_PIECES:
        raise UserError(f"training.{name} has {len(steps)} pairs: give at most {MAX_PIECES}, each compiles anew")


def _check_counts(config: RunConfig) -> None:
    for section in ("data", "training"):
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            if type(value) is not int or name in ("seed", "zero_stage"):
                continue
            least = 0 if name in ("keep_last", "keep_every") else 1
            if value < least:
                wanted = "positive number" if least else "number of at least 0"
                raise UserError(f"{section}.{name} is {value}: give a {wanted}")


def _check_parallel(config: RunConfig, world_size: int) -> None:
    """Whether layers, processes and ZeRO stage can be split as asked."""
    training, model = config.training, config.model
    size = training.tensor_model_parallel_size
    shared = math.gcd(model.num_attention_heads, model.ffn_hidden_size, world_size)
    fitting = [n for n in range(1, shared + 1) if shared % n == 0]
    rows = training.micro_batch_size * world_size
    with_batch = [n for n in fitting if _common_rows(training) * n % rows == 0]
    for name, value in [
        ("model.num_attention_heads", model.num_attention_heads),
        ("model.ffn_hidden_size", model.ffn_hidden_size),
        ("the number of processes", world_size),
    ]:
        if value % size:
            raise UserError(
                f"training.tensor_model_parallel_size {size} does not divide {name} ({value}): what divides heads, "
                f"ffn and processes{', and suits the batch,' if with_batch else ''} is "
                f"{', '.join(map(str, with_batch or fitting))}"
            )
    if training.zero_stage == 0 and training.precision != "fp32":
        other = "" if training.offload_optimizer else ", or precision fp32"
        raise UserError(
            f"training.zero_stage 0 keeps no fp32 master weights for {training.precision}: "
            f"take zero_stage 1 or 2{other}"
        )
    if config.optimizer.type == "muon" and (training.zero_stage == 3 or training.offload_optimizer):
        instead = ["zero_stage 1 or 2"] * (training.zero_stage == 3) + ["offload_optimizer false"] * (
            training.offload_optimizer
        )
        raise UserError(
            "optimizer.type muon needs whole matrices on the device, which zero_stage 3 and offload_optimizer do not "
            f"leave there: take {' and '.join(instead)}, or optimizer.type adamw"
        )
    if training.zero_stage == 0 and training.offload_optimizer:
        raise UserError("training.offload_optimizer needs zero_stage 1, 2 or 3: it is 0")


def _common_rows(training: TrainingConfig) -> int:
    """What divides the rows of every step: a step is made of whole micro-batches of all processes."""
    return math.gcd(training.global_batch_size, *(rows for _, rows in training.batch_warmup))


def _check_batch(training: TrainingConfig, data_parallel_size: int) -> None:
    micro, size = training.micro_batch_size, data_parallel_size
    common = _common_rows(training)
    if common % (micro * size) == 0:
        return
    sizes = {training.global_batch_size: "global_batch_size"} | dict.fromkeys(
        (rows for _, rows in training.batch_warmup[:-1]), "batch_warmup's rows"
    )
    total, name = next((rows, name) for rows, name in sizes.items() if rows % (micro * size))
    processes = f"{size} processes"
    if training.tensor_model_parallel_size > 1:
        processes = f"{size} data-parallel groups of {training.tensor_model_parallel_size} processes"
    where = f"training.{name} {total} is not a multiple of micro_batch_size {micro} x {processes}"
    counts = [n * training.tensor_model_parallel_size for n in range(1, common + 1) if common % (micro * n) == 0]
    elsewhere = f", or {_some(counts, size * training.tensor_model_parallel_size)} processes" if counts else ""
    if total % size:
        rows = micro * size
        around = {max(total // rows, 1) * rows, -(-total // rows) * rows}
        fitting = " or ".join(str(n) for n in sorted(around))
        what = f"a {name}" if name == "global_batch_size" else name
        raise UserError(f"{where}: with {processes} take {what} of {fitting}{elsewhere}")
    divisors = [n for n in range(1, common // size + 1) if common // size % n == 0 and common % size == 0]
    if not divisors:
        raise UserError(f"{where}: take other rows, or a smaller micro_batch_size{elsewhere}")
    raise UserError(f"{where}: take a micro_batch_size of {_some(divisors, micro)}{elsewhere}")


def _some(numbers: list[int], near: int) -> str:
    """The few that are nearest, in order."""
    return ", ".join(map(str, sorted(sorted(numbers, key=lambda n: abs(n - near))[:4])))


def rows_of_a_process(training: TrainingConfig, world_size: int) -> int:
    """Rows of a step that each data-parallel process has; where steps differ, of which all have a multiple."""
    return _common_rows(training) * training.tensor_model_parallel_size // world_size


def needs_less_memory(config: RunConfig, world_size: int, *, on_gpu: bool) -> str:
    """What to change so that a process needs less memory, and that the configuration's checks accept."""
    training = config.training
    rows = rows_of_a_process(training, world_size)
    smaller = [n for n in range(1, training.micro_batch_size) if rows % n == 0]
    ways = []
    if smaller:
        ways.append(f"--training.micro_batch_size {smaller[-1]}")
    if not config.model.recompute:
        ways.append("--model.recompute true")
    last_stage = 2 if config.optimizer.type == "muon" else 3
    if training.zero_stage < last_stage and world_size > training.tensor_model_parallel_size:
        ways.append(f"--training.zero_stage {training.zero_stage + 1}")
    if on_gpu and training.zero_stage and last_stage == 3 and not training.offload_optimizer:
        ways.append("--training.offload_optimizer true")
    if not ways:
        return "take a machine with more memory, or a smaller model"
    return "take " + " or ".join(ways)


def with_less_memory(config: RunConfig, world_size: int) -> Iterator[tuple[RunConfig, list[str]]]:
    """Configurations that need ever less memory, with the options that make them; what costs least time comes first."""
    options: dict[str, str] = {}

    def changed(section: str, name: str, value: bool | int) -> tuple[RunConfig, list[str]]:
        nonlocal config
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
        options[f"--{section}.{name}"] = str(value).lower()
        return config, [word for pair in options.items() for word in pair]

    def fewer_rows() -> Iterator[tuple[RunConfig, list[str]]]:
        rows = rows_of_a_process(config.training, world_size)
        for number in reversed(range(1, config.training.micro_batch_size)):
            if rows % number == 0:
                yield changed("training", "micro_batch_size", number)

    yield from fewer_rows()
    if not config.model.recompute:
        yield changed("model", "recompute", True)
    last_stage = 2 if config.optimizer.type == "muon" else 3
    for stage in range(config.training.zero_stage + 1, last_stage + 1):
        if world_size > config.training.tensor_model_parallel_size:
            yield changed("training", "zero_stage", stage)
    for size in (2, 4, 8):
        fits = world_size % size == 0 and config.model.num_attention_heads % size == 0
        if fits and size > config.training.tensor_model_parallel_size:
            yield changed("training", "tensor_model_parallel_size", size)

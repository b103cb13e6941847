"""The configuration of a training run and the checks across its fields. Imports no torch."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from data_prep.contract.command_line import UserError
from data_prep.contract.shell.paths import PATH
from pipeline.layout import kv_projections, parse_layout

LIVE_ELEMENTS = 50_000_000
"""Weights that ZeRO 3 keeps fetched at once; DeepSpeed's own limit of 10^9 would keep all of most encoders."""

BUCKET_ELEMENTS = 50_000_000
"""Elements of a buffer in which DeepSpeed sums gradients."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards, and in which order."""

    path: tuple[str, ...] | str = dataclasses.field(default="shards", metadata=PATH)
    """Folder made by ``narrowbert-prep shards``, or a list of them to mix."""
    weights: tuple[float, ...] | None = None
    """One positive number for each folder of a list: [3, 1] takes three rows of the first for one of the second,
    exactly. A folder that has no more rows begins its next epoch."""
    seed: int = 1234
    """Seed of the order of the rows."""
    num_workers: int = 2
    """Threads of each process that read ahead; they change neither rows nor order."""
    prefetch_factor: int = 2
    """Steps that each of those threads may be ahead of the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the encoder. The vocabulary size comes from the shards. Defaults: BERT-base, narrowed."""

    layout: str = "2sf:10sf"
    """The paper's notation; '12sf' is plain BERT."""
    hidden_size: int = 768
    """Width of the residual stream."""
    num_attention_heads: int = 12
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: int = 3072
    """Inner width of the feed-forward sublayers."""
    max_position_embeddings: int = 512
    """Longest row in tokens."""
    hidden_dropout: float = 0.1
    """Dropout after embeddings and on every sublayer's output."""
    attention_dropout: float = 0.1
    """Dropout on attention probabilities."""
    layernorm_epsilon: float = 1e-12
    """Epsilon of the layer norms (BERT: 1e-12)."""
    init_method_std: float = 0.02
    """Standard deviation of the normal initialisation (BERT: 0.02)."""
    normalization: Literal["post", "pre"] = "post"
    """Norm after each residual sum (BERT), or before each sublayer and once at the end."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of norm; layernorm_epsilon is the epsilon of either."""
    position: Literal["absolute", "rope", "alibi"] = "absolute"
    """Learned absolute positions (BERT), rotary embedding of queries and keys, or a bias by distance."""
    rotary_base: float = 10000.0
    """Base of the wavelengths of 'rope'."""
    activation: Literal["gelu", "geglu", "swiglu"] = "gelu"
    """Of the feed-forward sublayers. The gated ones have a third matrix: take 2/3 of ffn_hidden_size for the
    same size of model."""
    bias: bool = True
    """Whether linear layers and layer norms have a bias; the output layer's stays."""
    narrow_kv: str = "per_layer"
    """Keys and values of the frozen state: per_layer (the paper), shared by all narrow layers, or grouped:N."""
    document_attention: Literal["shared", "isolated"] = "shared"
    """Whether the documents of a packed row see each other; isolated ones also count positions from 0 each."""
    recompute: bool = False
    """Keep only each layer's inputs and compute the rest again in the backward pass: less memory, more time."""

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights to start from. A run that has a checkpoint resumes from it and does not read them again."""

    from_huggingface: str | None = dataclasses.field(default=None, metadata=PATH)
    """Folder of a BERT or NarrowBERT in transformers' form (config.json, model.safetensors) to start from."""
    allow: tuple[str, ...] = ()
    """What may differ there, such as [bert.pooler.*, cls.seq_relationship.*]: tensors that are missing or of another
    shape stay as initialised, those that do not belong to the model are left out; keys of config.json; tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule. Defaults: the paper's recipe."""

    lr: float = 5e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["linear", "cosine", "sqrt", "constant"] = "linear"
    """Shape of the decay: a straight line, a half cosine, 1 - sqrt, or none."""
    lr_decay_fraction: float = 1.0
    """Share of train_steps, at the end, over which the rate falls; until then it is stable. 1: all after warm-up."""
    lr_warmup_fraction: float = 0.02
    """Share of train_steps over which the rate rises linearly from 0."""
    lr_warmup_steps: int | None = None
    """Steps of the warm-up, in place of lr_warmup_fraction: they stay when train_steps changes."""
    adam_beta1: float = 0.9
    """First-moment decay."""
    adam_beta2: float = 0.999
    """Second-moment decay."""
    adam_eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Decoupled decay; biases and norms have none."""
    clip_grad: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in which batches, at which precision, and what happens every n steps."""

    train_steps: int = 70_000
    """Optimizer steps."""
    global_batch_size: int = 1728
    """Rows per step, over all processes and accumulation steps."""
    micro_batch_size: int = 24
    """Rows that a process computes at once; the rest is gradient accumulation."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of weights and activations; master weights, optimizer states, softmax and loss are fp32."""
    tensor_model_parallel_size: int = 1
    """Processes that divide every layer among them (tensor parallel); the others divide the batch."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 splits optimizer states, 2 gradients as well, 3 weights too; 0 splits nothing (fp32)."""
    offload_optimizer: bool = False
    """Keep master weights and optimizer states in the host's memory and update them there (ZeRO 1 to 3)."""
    max_skipped_steps: int = 10
    """End the run after this many steps in a row whose gradients are not finite; such a step changes no weight."""
    max_failed_saves: int = 10
    """End the run after this many checkpoints in a row that could not be written."""
    seed: int = 42
    """Seed of initialisation and dropout."""
    log_interval: int = 10
    """Steps between two writes of metrics (every step's loss is kept)."""
    eval_interval: int = 1000
    """Steps between two evaluations on the validation split; there is always one at the end."""
    eval_rows: int = 4096
    """Validation rows an evaluation reads at most."""
    save_interval: int = 1000
    """Steps between two checkpoints; there is always one at the end."""
    keep_last: int = 0
    """Checkpoints to keep; older ones are removed. 0 keeps all."""
    keep_every: int = 0
    """Also keep forever the checkpoints whose step is a multiple of this; 0: none."""
    hang_timeout: int = 1800
    """Seconds without any progress after which the run ends (exit code 86) and names the rank that lags; before the
    first step is done at least ten minutes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow. The server is MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db in the working folder."""

    enabled: bool = True
    """Send metrics to MLflow; metrics.jsonl in the run directory is written in any case."""
    experiment_name: str = "narrowbert"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; default: the run directory's name."""
    log_weights: bool = False
    """At the end, copy the last checkpoint's weights to MLflow as well; its manifests go there in any case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    run_dir: str = dataclasses.field(default="", metadata=PATH)
    """Folder of the run: configuration, checkpoints, metrics, logs. Needed to train."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Data."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Model."""
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    """Weights to start from."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """Optimizer."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """Training."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    """Tracking."""


# What may differ between a run's stored configuration and the command that resumes it: nothing
# here changes a loss (beyond rounding, for the batch split and the ZeRO stage).
RESUMABLE_CHANGES = {
    "run_dir",
    "data.path",
    "data.num_workers",
    "data.prefetch_factor",
    "model.recompute",
    "training.micro_batch_size",
    "training.tensor_model_parallel_size",
    "training.zero_stage",
    "training.offload_optimizer",
    "training.max_skipped_steps",
    "training.max_failed_saves",
    "training.log_interval",
    "training.eval_interval",
    "training.eval_rows",
    "training.save_interval",
    "training.keep_last",
    "training.keep_every",
    "training.hang_timeout",
    "tracking.enabled",
    "tracking.experiment_name",
    "tracking.run_name",
    "tracking.log_weights",
}

# What may differ as well where the learning rate of every step that is done stays the same.
SCHEDULE_CHANGES = {
    "optimizer.min_lr",
    "optimizer.lr_decay_style",
    "optimizer.lr_decay_fraction",
    "optimizer.lr_warmup_fraction",
    "optimizer.lr_warmup_steps",
    "training.train_steps",
}


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
    _check_batch(config.training, world_size // config.training.tensor_model_parallel_size)
    if config.init.allow and config.init.from_huggingface is None:
        raise UserError("init.allow says what may differ in init.from_huggingface: give that as well, or neither")
    if Path(config.run_dir).is_file():
        raise UserError(f"run_dir {config.run_dir} is a file: give a folder")


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
        ("optimizer.lr_warmup_fraction", config.optimizer.lr_warmup_fraction),
        ("optimizer.adam_beta1", config.optimizer.adam_beta1),
        ("optimizer.adam_beta2", config.optimizer.adam_beta2),
    ]:
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}: give a number of at least 0 and below 1")
    for name, value in [
        ("model.layernorm_epsilon", config.model.layernorm_epsilon),
        ("model.init_method_std", config.model.init_method_std),
        ("model.rotary_base", config.model.rotary_base),
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
    with_batch = [n for n in fitting if training.global_batch_size * n % rows == 0]
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
            f"training.zero_stage 0 keeps no fp32 master weights for {training.precision}: take zero_stage 1, 2 or 3"
            f"{other}"
        )
    if training.zero_stage == 0 and training.offload_optimizer:
        raise UserError("training.offload_optimizer needs zero_stage 1, 2 or 3: it is 0")


def _check_batch(training: TrainingConfig, data_parallel_size: int) -> None:
    total, micro, size = training.global_batch_size, training.micro_batch_size, data_parallel_size
    if total % (micro * size) == 0:
        return
    processes = f"{size} processes"
    if training.tensor_model_parallel_size > 1:
        processes = f"{size} data-parallel groups of {training.tensor_model_parallel_size} processes"
    where = f"training.global_batch_size {total} is not a multiple of micro_batch_size {micro} x {processes}"
    sizes = [n * training.tensor_model_parallel_size for n in range(1, total + 1) if total % (micro * n) == 0]
    elsewhere = f", or {_some(sizes, size * training.tensor_model_parallel_size)} processes" if sizes else ""
    if total % size:
        rows = micro * size
        around = {max(total // rows, 1) * rows, -(-total // rows) * rows}
        fitting = " or ".join(str(n) for n in sorted(around))
        raise UserError(f"{where}: with {processes} take a global_batch_size of {fitting}{elsewhere}")
    divisors = [n for n in range(1, total // size + 1) if total // size % n == 0]
    raise UserError(f"{where}: take a micro_batch_size of {_some(divisors, micro)}{elsewhere}")


def _some(numbers: list[int], near: int) -> str:
    """The few that are nearest, in order."""
    return ", ".join(map(str, sorted(sorted(numbers, key=lambda n: abs(n - near))[:4])))


def needs_less_memory(config: RunConfig, world_size: int, *, on_gpu: bool) -> str:
    """What to change so that a process needs less memory, and that the configuration's checks accept."""
    training = config.training
    rows = training.global_batch_size * training.tensor_model_parallel_size // world_size
    smaller = [n for n in range(1, training.micro_batch_size) if rows % n == 0]
    ways = []
    if smaller:
        ways.append(f"--training.micro_batch_size {smaller[-1]}")
    if not config.model.recompute:
        ways.append("--model.recompute true")
    if training.zero_stage < 3 and world_size > training.tensor_model_parallel_size:
        ways.append(f"--training.zero_stage {training.zero_stage + 1}")
    if on_gpu and training.zero_stage and not training.offload_optimizer:
        ways.append("--training.offload_optimizer true")
    if not ways:
        return "take a machine with more memory, or a smaller model"
    return "take " + " or ".join(ways)

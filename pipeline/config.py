"""The configuration of a training run. Imports no torch."""

import dataclasses
from typing import Literal

from data_prep.contract.shell.paths import PATH

GrowthMethod = Literal["fpi", "aki", "tile", "zero"]
"""How a smaller model becomes a wider one; see ``InitConfig.growth``."""

Depth = Literal["stack", "interleave", "identity"]
"""How fewer layers become more; see ``InitConfig.depth``."""

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
    """Seed of the order of the rows, and of which masked positions a lower mask_rate takes."""
    num_workers: int = 2
    """Threads of each process that read ahead; they change neither rows nor order."""
    prefetch_factor: int = 2
    """Steps that each of those threads may be ahead of the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the encoder. The vocabulary size comes from the shards. Defaults: BERT-base, narrowed."""

    layout: str = "2sf:10sf"
    """The paper's notation, such as '12sf' for plain BERT; w is attention to a window (ModernBERT: '7sfwfwf sf')."""
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
    attention_output_dropout: float | None = None
    """Dropout on the output of attention sublayers, where it is not hidden_dropout (ModernBERT: 0.1 there alone)."""
    layernorm_epsilon: float = 1e-12
    """Epsilon of the layer norms (BERT: 1e-12)."""
    initialization: Literal["normal", "megatron"] = "normal"
    """How weights are drawn: all from one normal distribution (BERT); or cut off at 3 standard deviations, and those
    of output projections divided by sqrt(2 num_layers), so that the residual stream does not grow with depth."""
    init_method_std: float = 0.02
    """Standard deviation of the normal distribution (BERT: 0.02)."""
    normalization: Literal["post", "pre"] = "post"
    """Norm after each residual sum (BERT), or before each sublayer and once at the end."""
    skip_first_norm: bool = False
    """In pre-norm, leave out the norm of the first sublayer: what it reads, the embeddings, has one (ModernBERT)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of norm; layernorm_epsilon is the epsilon of either."""
    position: Literal["absolute", "rope", "alibi"] = "absolute"
    """Learned absolute positions (BERT), rotary embedding of queries and keys, or a bias by distance."""
    rotary_base: float = 10000.0
    """Base of the wavelengths of 'rope'."""
    attention_window: int = 128
    """Width of the window of a layout's w, even: a position sees those at most half as far away on either side."""
    local_rotary_base: float = 10000.0
    """Base of the wavelengths of 'rope' in those sublayers."""
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
    shape stay as initialised, those that do not belong to the model are left out; keys of config.json; tokenizer.
    Of from_run: [layout], to read its layers on other sides of the ':'."""
    from_run: str | None = dataclasses.field(default=None, metadata=PATH)
    """Run of this program whose newest checkpoint this one starts from, as RUN, RUN@STEP or a checkpoint's folder."""
    moments: bool = False
    """Whether to take that run's optimizer moments as well, so that its training simply goes on."""
    growth: GrowthMethod | None = None
    """How a smaller model there becomes a larger one here: fpi copies units so that the model computes the same (Chen
    et al., "bert2BERT", ACL 2022), aki takes new heads and inner units from the layer above, tile repeats the smaller
    model around its middle (ModernBERT-large), zero adds units that give nothing (rmsnorm). null: equal sizes."""
    depth: Depth = "stack"
    """How fewer layers there become more here, on each side of ':': whole copies on top of each other, every layer
    repeated in place, or repeats that change nothing at first (pre-norm)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule. Defaults: the paper's recipe."""

    type: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for the hidden matrices and AdamW for embeddings, biases and norms (ZeRO 0 to 2)."""
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
    muon_momentum: float = 0.95
    """Decay of Muon's momentum."""
    weight_decay: float = 0.01
    """Decoupled decay; biases and norms have none."""
    clip_grad: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, in which batches, at which precision, and what happens every n steps."""

    train_steps: int = 70_000
    """Optimizer steps."""
    time_budget_hours: float | None = None
    """Hours in which the run should be done, over all its starts: the decay begins in time for that, and train_steps is
    the most that it does. Needs a stable phase: an lr_decay_fraction below 1."""
    global_batch_size: int = 1728
    """Rows per step, over all processes and accumulation steps."""
    batch_warmup: tuple[tuple[int, int], ...] = ()
    """Rows of a step, from a step on: [[0, 432], [2000, 864], [5000, 1728]]. The last are global_batch_size. Empty:
    all steps have global_batch_size rows."""
    micro_batch_size: int = 24
    """Rows that a process computes at once; the rest is gradient accumulation."""
    mask_rate: tuple[tuple[int, float], ...] = ()
    """Share of a row's tokens that are masked, from a step on: [[0, 0.3], [10000, 0.15]] masks 30%, and 15% after
    10,000 steps, both from the same shards. A step takes so many of a row's masked positions, and the rest keep their
    tokens. Empty: all that the shards hold."""
    eval_mask_rate: float = 0.15
    """The same share in every evaluation, or all that the shards hold where that is less."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of weights and activations; master weights, optimizer states, softmax and loss are fp32."""
    tensor_model_parallel_size: int = 1
    """Processes that divide every layer among them (tensor parallel); the others divide the batch."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 splits optimizer states, 2 gradients as well, 3 weights too; 0 splits nothing (fp32)."""
    offload_optimizer: bool = False
    """Keep master weights and optimizer states in the host's memory and update them there (ZeRO 1 to 3)."""
    max_skipped_steps: int = 10
    """End the run after this many steps in a row whose gradients are not finite, or that are spikes; such a step
    changes no weight."""
    spike_sigma: float = 0.0
    """Skip a step, as one whose gradients are not finite, if its loss or gradient norm is so many standard deviations
    above the mean of the last 128 steps; typically 6. 0: none is skipped for that."""
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
# here changes a loss (beyond rounding, for the batch split and the ZeRO stage; a run that went
# astray may begin to skip spikes).
RESUMABLE_CHANGES = {
    "run_dir",
    "data.path",
    "data.num_workers",
    "data.prefetch_factor",
    "model.recompute",
    "training.time_budget_hours",
    "training.micro_batch_size",
    "training.tensor_model_parallel_size",
    "training.zero_stage",
    "training.offload_optimizer",
    "training.max_skipped_steps",
    "training.spike_sigma",
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

# What may differ as well where the learning rate and the rows of every step that is done stay the same.
SCHEDULE_CHANGES = {
    "optimizer.min_lr",
    "optimizer.lr_decay_style",
    "optimizer.lr_decay_fraction",
    "optimizer.lr_warmup_fraction",
    "optimizer.lr_warmup_steps",
    "training.batch_warmup",
    "training.mask_rate",
    "training.train_steps",
}


def micro_batches(training: TrainingConfig, data_parallel_size: int) -> int:
    """Micro-batches of a rank in a step."""
    return training.global_batch_size // (training.micro_batch_size * data_parallel_size)


def adds_in_fp32(training: TrainingConfig, data_parallel_size: int) -> bool:
    """Whether the gradients of a step's micro-batches are added up in more bits than they are computed in.

    A bf16 sum of 72 gradients is off by 0.9%, twice the error of computing one in bf16. A single micro-batch needs
    no sum, and its gradients stay small.
    """
    return training.precision != "fp32" and micro_batches(training, data_parallel_size) > 1

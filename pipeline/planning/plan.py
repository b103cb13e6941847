"""``narrowbert plan``: what a configuration costs, without starting anything."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from data_prep.contract.command_line import UserError
from pipeline.config import ModelConfig, RunConfig
from pipeline.config_checks import check_config
from pipeline.data.mixture import Mixture, open_mixture, paths_of
from pipeline.data.row_schedule import RowSchedule
from pipeline.layout import Layout, parse_layout
from pipeline.model.arithmetic import (
    RowShape,
    orthogonalisation_flops,
    predicted_speedup,
    predicted_speedup_of_rows,
    training_flops,
)
from pipeline.model.parameters import count_moments, count_parameters
from pipeline.planning.communication import bytes_out_of_node, step_communication, step_seconds

# Of a run's order, to count who reads a chunk.
_REPLAYED_ROWS = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What ``plan`` needs besides the run's configuration."""

    processes: int = 1
    """Processes (GPUs) the run would have."""
    tokens_per_second: float | None = None
    """Rate of all processes together at which to state the time."""
    seq_length: int | None = None
    """Tokens per row; default: as in the shards at data.path."""
    masked_per_row: int | None = None
    """Masked positions per row; default: as in the shards, or 15% of seq_length."""
    vocab_size: int | None = None
    """Vocabulary size; default: as in the shards."""
    gpu_gibibytes: float | None = None
    """GiB of memory of a GPU: says whether a process fits, and if not, what lets it."""
    nodes: int = 1
    """Nodes over which the processes are spread evenly."""
    node_tokens_per_second: float | None = None
    """Rate of one node alone, measured: what several could do if the network cost nothing."""
    network_gigabytes_per_second: float | None = None
    """10^9 bytes per second that a node's network carries in one direction (400 Gbit/s are 50)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration costs; as a string the table that ``narrowbert plan`` prints."""

    parameters: int
    """Trainable parameters, each tied one counted once."""
    training_flops: float
    """Floating-point operations per row, forward and backward; in the mean over the run, as the figures below."""
    control_training_flops: float
    """The same of the control: all layers over all positions."""
    predicted_speedup: float
    """The control's time over this model's, by arithmetic alone."""
    tokens: int
    """Tokens that the whole training reads."""
    lines: tuple[tuple[str, str], ...]
    """Name and value of every line of the table."""

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.lines)


def plan(config: RunConfig, options: PlanOptions) -> Plan:
    """What the configuration costs. Nothing is started.

    Raises:
        UserError: the configuration does not fit together, or neither shards nor sizes are given.
    """
    _check_options(options)
    check_config(config, world_size=options.processes)
    shape, shards = _row_shape(config, options)
    layout = parse_layout(config.model.layout)
    schedule = RowSchedule(config.training, shape)
    by_shape = schedule.rows_by_shape()
    shape = schedule.shapes()[0]  # memory must do for the most masks
    speedup = predicted_speedup_of_rows(config.model, by_shape)
    parameters = count_parameters(config.model, shape.vocab_size)
    moments = count_moments(config.model, config.optimizer, shape.vocab_size)
    rows = sum(by_shape.values())
    tokens = rows * shape.seq_length
    flops, control = (_mean_flops(one, config.model, by_shape) for one in (layout, layout.control()))
    lines = [
        ("layout", f"{layout} (control: {layout.control()})"),
        ("row", f"{shape.seq_length} tokens, {shape.masked_per_row} masked, vocabulary {shape.vocab_size:,}"),
        ("parameters", f"{parameters:,}"),
        *_mask_lines(config.model, schedule),
        ("forward FLOPs per row", f"{flops / 3:.4g}"),
        ("training FLOPs per row", f"{flops:.4g}"),
        ("control's training FLOPs", f"{control:.4g}"),
        ("predicted speed-up", f"{speedup:.2f}x (control's head on masked positions too)"),
        *_muon_lines(config, flops, options.processes),
        ("steps", f"{config.training.train_steps:,} of {_rows_of_steps(config)}"),
        ("tokens", f"{tokens:,}" + (f" ({_epochs(rows, shards)})" if shards else "")),
        *_memory_lines(config, shape, options),
        *_communication_lines(config, shape, options),
        *_growth_lines(config, shards, parameters, moments, options),
        _time_line(config.model, schedule, tokens, options.tokens_per_second),
    ]
    return Plan(
        parameters=parameters,
        training_flops=flops,
        control_training_flops=control,
        predicted_speedup=speedup,
        tokens=tokens,
        lines=tuple(lines),
    )


def _muon_lines(config: RunConfig, row_flops: float, processes: int) -> list[tuple[str, str]]:
    """What Muon adds to a process's arithmetic."""
    if config.optimizer.type != "muon":
        return []
    training = config.training
    data_size = processes // training.tensor_model_parallel_size
    # Tensor-parallel ranks each compute the whole matrix, without ZeRO all ranks.
    flops = orthogonalisation_flops(config.model) // (data_size if training.zero_stage else 1)
    share = flops / (row_flops * training.global_batch_size / processes)
    return [("Muon's FLOPs per step", f"{flops:.4g} in each process, {100 * share:.1f}% of those of its rows")]


def _rows_of_steps(config: RunConfig) -> str:
    warmup = [f"{rows:,} from step {step:,} on" for step, rows in config.training.batch_warmup]
    return f"{config.training.global_batch_size:,} rows" + (f" ({', '.join(warmup)})" if warmup else "")


def _mean_flops(layout: Layout, model: ModelConfig, rows: Mapping[RowShape, int]) -> float:
    """Training FLOPs of a row, in the mean over so many rows of each shape."""
    return sum(count * training_flops(layout, model, shape) for shape, count in rows.items()) / sum(rows.values())


def _mask_lines(model: ModelConfig, schedule: RowSchedule) -> list[tuple[str, str]]:
    """What rows look like from which step on, where that changes."""
    pieces = schedule.mask_pieces()
    if len(pieces) == 1:
        return []
    layout = parse_layout(model.layout)
    return [
        (
            f"from step {step:,} on",
            f"{shape.masked_per_row} masked ({100 * shape.masked_per_row / shape.seq_length:.1f}%), "
            f"{training_flops(layout, model, shape):.4g} training FLOPs per row, "
            f"{predicted_speedup(model, shape):.2f}x",
        )
        for step, shape in pieces
    ]


def _time_line(
    model: ModelConfig, schedule: RowSchedule, tokens: int, tokens_per_second: float | None
) -> tuple[str, str]:
    """Hours of the run; where rows change, steps take time as they take FLOPs."""
    if not tokens_per_second:
        return "time", "add --tokens_per_second RATE to estimate it"
    layout, first = parse_layout(model.layout), schedule.shape(0)
    share = _mean_flops(layout, model, schedule.rows_by_shape()) / training_flops(layout, model, first)
    of_what = "" if len(schedule.shapes()) == 1 else f" with {first.masked_per_row} masked"
    hours = tokens / tokens_per_second / 3600 * share
    return f"time at {tokens_per_second:,.0f} tokens/s{of_what}", f"{hours:,.2f} hours"


def _epochs(rows: int, shards: Mixture) -> str:
    """Epochs that so many rows are; of a mixture those of each folder as well."""
    whole = f"{rows / sum(shards.train_rows):.2f} epochs"
    if len(shards.folders) == 1:
        return whole
    per_share = rows / sum(shards.shares)
    parts = zip(shards.names, shards.shares, shards.train_rows, strict=True)
    return f"{whole}: " + ", ".join(f"{share * per_share / size:.2f} of {name}" for name, share, size in parts)


def _check_options(options: PlanOptions) -> None:
    for name in ("gpu_gibibytes", "tokens_per_second", "node_tokens_per_second", "network_gigabytes_per_second"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}: give a number above 0")
    if options.nodes < 1 or options.processes % options.nodes:
        raise UserError(f"processes {options.processes} cannot be spread evenly over nodes {options.nodes}")


def _memory_lines(config: RunConfig, shape: RowShape, options: PlanOptions) -> list[tuple[str, str]]:
    """Memory per process for every ZeRO stage, and what the configured one is made of."""
    from pipeline.planning.memory import bucket_bytes, predict_memory, state_bytes  # torch, which only this needs

    lines, processes = list[tuple[str, str]](), options.processes
    chosen = predict_memory(config, shape, processes, on_gpu=True)
    first, last = 0 if config.training.precision == "fp32" else 1, 2 if config.optimizer.type == "muon" else 3
    for stage in range(first, last + 1):
        total = sum(state_bytes(config, shape, processes, stage)) + chosen.activations
        mark = " <- configured" if stage == config.training.zero_stage else ""
        lines.append((f"memory per process, ZeRO {stage}", f"{total / 2**30:.3f} GiB{mark}"))
    parts = ("weights", "gradients", "optimizer", "activations")
    lines.append(("", ", ".join(f"{part} {getattr(chosen, part) / 2**30:.3f}" for part in parts)))
    if config.training.zero_stage:
        lines.append(("on a GPU besides, to sum gradients", f"{bucket_bytes(config, processes) / 2**30:.3f} GiB"))
    if options.gpu_gibibytes is not None:
        from pipeline.planning.fitting import fitting_line

        text = fitting_line(config, shape, processes, options.gpu_gibibytes)
        lines.append((f"on a GPU of {options.gpu_gibibytes:g} GiB", text))
    scores = predict_memory(config, shape, processes).activations - chosen.activations
    if scores > 0:
        lines.append(("on a CPU besides, for attention's scores", f"{scores / 2**30:.3f} GiB"))
    # Weights and moments in fp32; ZeRO 0 has no master weights among its optimizer states.
    copy = chosen.optimizer if config.training.zero_stage else chosen.optimizer * 3 // 2
    lines.append(("host memory besides, for checkpoints", f"{copy / 2**30:.3f} GiB"))
    return lines


def _communication_lines(config: RunConfig, shape: RowShape, options: PlanOptions) -> list[tuple[str, str]]:
    """Bytes per step by collective; on several nodes the time of a step and what the network takes of it."""
    if options.processes == 1:
        return []
    collectives = step_communication(config, shape, options.processes)
    lines = [
        (
            f"{collective.what}, {collective.operation}",
            f"{collective.payload / 1e9:.4g} GB per step and process over {collective.group_size}, "
            f"{collective.sent / 1e9:.4g} GB sent",
        )
        for collective in collectives
    ]
    if options.nodes == 1:
        return lines
    out = bytes_out_of_node(collectives, options.processes // options.nodes, options.nodes)
    lines.append(("out of each node", f"{out / 1e9:.4g} GB per step"))
    rate, bandwidth = options.node_tokens_per_second, options.network_gigabytes_per_second
    if rate is None or bandwidth is None:
        missing = "--node_tokens_per_second RATE and --network_gigabytes_per_second GB"
        lines.append((f"step on {options.nodes} nodes", f"give {missing} to have it predicted"))
        return lines
    compute = config.training.global_batch_size * shape.seq_length / (options.nodes * rate)
    seconds, efficiency = step_seconds(compute, out, bandwidth * 1e9)
    tokens = config.training.global_batch_size * shape.seq_length / seconds
    lines.append(
        (
            f"step on {options.nodes} nodes",
            f"{seconds:.4g} s ({compute:.4g} computing, {seconds - compute:.4g} network), {tokens:,.0f} tokens/s, "
            f"{100 * efficiency:.1f}% efficient",
        )
    )
    return lines


def _growth_lines(
    config: RunConfig, shards: Mixture | None, parameters: int, moments: int, options: PlanOptions
) -> list[tuple[str, str]]:
    """What else grows with the processes of several nodes."""
    if options.nodes == 1:
        return []
    from pipeline.planning import growth  # torch, as above
    from pipeline.processes.watchdog import heartbeat_interval_s

    training, ranks = config.training, options.processes
    lines = [("agreement", f"{1e3 * growth.agreement_seconds(ranks):.1f} ms per step, while the step is computed")]
    if shards is not None:
        batch, size = training.global_batch_size, ranks // training.tensor_model_parallel_size
        steps = max(2, _REPLAYED_ROWS // batch)
        readers = growth.readers_of_chunk(shards.order(config.data.seed, batch), batch, size, steps)
        lines.append(("reading", f"a chunk is read by {readers:.2f} of {size} data-parallel processes"))
    written = growth.checkpoint_bytes(parameters, moments)
    read = growth.resume_bytes(parameters, moments, ranks, training.zero_stage)
    lines += [
        ("checkpoint", f"{written / 1e9:.4g} GB, {written / ranks / 1e9:.4g} GB written by each process"),
        ("resume", f"{read / 1e9:.4g} GB read by each process"),
        ("heartbeats", f"{options.nodes} files every {heartbeat_interval_s(training.hang_timeout):g} s"),
    ]
    return lines


def _row_shape(config: RunConfig, options: PlanOptions) -> tuple[RowShape, Mixture | None]:
    """Sizes from the options, completed from the shards; and those, if read."""
    if options.seq_length is not None and options.vocab_size is not None:
        return _checked(config, options.seq_length, options.masked_per_row, options.vocab_size), None
    missing = [p for p in paths_of(config.data.path) if "://" not in p and not (Path(p) / "manifest.json").exists()]
    if missing:
        raise UserError(
            f"no shards at {missing[0]}: make them with narrowbert-prep shards, or state --seq_length and --vocab_size"
        )
    shards = open_mixture(config.data.path, config.data.weights)
    seq_length, masked = options.seq_length, options.masked_per_row
    if seq_length in (None, shards.seq_length):  # rows of another length have another number of masks
        seq_length, masked = shards.seq_length, shards.masked_per_row if masked is None else masked
    vocab_size = shards.vocab_size if options.vocab_size is None else options.vocab_size
    return _checked(config, seq_length, masked, vocab_size), shards


def _checked(config: RunConfig, seq_length: int, masked: int | None, vocab_size: int) -> RowShape:
    masked = max(1, round(0.15 * seq_length)) if masked is None else masked
    shape = RowShape(seq_length=seq_length, masked_per_row=masked, vocab_size=vocab_size)
    if seq_length > config.model.max_position_embeddings:
        raise UserError(
            f"seq_length {seq_length} needs model.max_position_embeddings of at least that "
            f"(it is {config.model.max_position_embeddings})"
        )
    if not 0 < shape.masked_per_row <= shape.seq_length or shape.vocab_size < 1:
        raise UserError(
            f"seq_length {shape.seq_length}, masked_per_row {shape.masked_per_row} and vocab_size "
            f"{shape.vocab_size} do not fit together: all positive, masked_per_row at most seq_length"
        )
    return shape

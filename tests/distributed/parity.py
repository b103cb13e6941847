"""Run by test_parity.py in every process of a group: many configurations, one start of the interpreter.

Usage: python -m tests.distributed.parity FUNCTION RANK WORLD_SIZE FOLDER
"""

import contextlib
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

os.environ["DS_ACCELERATOR"] = "cpu"

from deepspeed.accelerator import get_accelerator
from deepspeed.utils import groups as deepspeed_groups
from megatron.core import parallel_state

from pipeline.checkpoints.format import KINDS, TrainerState
from pipeline.checkpoints.reading import load_weights, read_tensors, read_trainer_state
from pipeline.checkpoints.restore import load_optimizer, optimizer_steps
from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from pipeline.engine import deepspeed_engine as engine
from pipeline.engine import muon as muon_module
from pipeline.engine.muon import orthogonalise
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.parallel.dropout_seeds import seed_dropout, tensor_parallel_dropout
from pipeline.parallel.groups import data_parallel_group, initialise_tensor_parallel
from pipeline.parallel.whole_tensors import is_partitioned
from pipeline.schedule import learning_rate

VOCAB, LENGTH, MASKED, ROWS, STEPS = 201, 16, 4, 8, 5
REPEATS = 16
"""Batches whose micro-batches are added up into one step."""
LAYOUTS = ("6sf", "2sf:4sf", "2sf 4s:4f")
Curve = list[tuple[float, float]]
"""(loss, gradient norm) by step."""


def configuration(layout: str = "sf:sf", **training: Any) -> RunConfig:
    values = {"train_steps": STEPS, "global_batch_size": ROWS, "micro_batch_size": 2, "precision": "fp32"} | training
    model = ModelConfig(
        layout=layout, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, max_position_embeddings=LENGTH,
        hidden_dropout=0.0, attention_dropout=0.0, init_method_std=0.1,
    )  # fmt: skip
    optimizer = OptimizerConfig(lr=0.01, clip_grad=0.5, weight_decay=0.1)
    return RunConfig(model=model, optimizer=optimizer, training=TrainingConfig(**values))


def rows(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step: every row has another number of masks, some have padding."""
    generator = torch.Generator().manual_seed(1000 + step)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (ROWS, 1), generator=generator)
    return {
        "input_ids": torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator),
        "narrow_positions": torch.randint(0, LENGTH // 2, (ROWS, MASKED), generator=generator),
        "key_mask": (torch.arange(LENGTH) < lengths)[:, None, None, :],
        "labels": torch.randint(0, VOCAB, (ROWS, MASKED), generator=generator),
        "label_mask": torch.arange(MASKED) < torch.randint(1, MASKED + 1, (ROWS, 1), generator=generator),
    }


def plain_curve(config: RunConfig, build_plain: Callable[[torch.nn.Module, OptimizerConfig], Any]) -> Curve:
    """The oracle: one process, torch alone, the whole batch at once."""
    torch.manual_seed(config.training.seed)
    model = NarrowBertForPretraining(config.model, VOCAB)
    options = config.optimizer
    optimizers = build_plain(model, options)
    curve = []
    for step in range(STEPS):
        batch = rows(step)
        loss = model(**batch).loss_sum / batch["label_mask"].sum()
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, options)
            optimizer.step()
        curve.append((loss.item(), norm.item()))
    return curve


def plain_adamw(parameters: Iterable[torch.nn.Parameter], options: OptimizerConfig) -> torch.optim.AdamW:
    """Torch's plain loop, not its fused kernel."""
    parameters = list(parameters)
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(options.adam_beta1, options.adam_beta2), eps=options.adam_eps, fused=False, foreach=False,
    )  # fmt: skip


@contextlib.contextmanager
def groups_of(tensor_parallel_size: int) -> Iterator[None]:
    """Megatron's groups, as a start of the trainer forms them, and afterwards none."""
    initialise_tensor_parallel(tensor_parallel_size)
    try:
        yield
    finally:
        gc.collect()
        dist.barrier()
        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        deepspeed_groups.mpu = None


def build(config: RunConfig) -> Any:
    torch.manual_seed(config.training.seed)
    padded = padded_vocab_size(VOCAB, config.training.tensor_model_parallel_size)
    return engine.build_engine(config, NarrowBertForPretraining(config.model, VOCAB, padded), torch.device("cpu"))


def train_steps(
    built: Any, config: RunConfig, first: int, last: int, refuses: Callable[[float], bool] | None = None
) -> Curve:
    """What the trainer's step does, on our rows."""
    group = data_parallel_group()
    rank, size, micro = dist.get_rank(group), dist.get_world_size(group), config.training.micro_batch_size
    curve = []
    for step in range(first, last):
        whole = rows(step)
        mine = {name: tensor[rank::size] for name, tensor in whole.items()}
        for parameters in built.optimizer.param_groups:
            parameters["lr"] = learning_rate(step, STEPS, config.optimizer)
        seed_dropout(config.training.seed, step, rank)
        count = whole["label_mask"].sum()
        loss_sum, norm = torch.zeros(()), None
        starts = range(0, ROWS // size, micro)
        for start in starts:
            output = built(**{name: tensor[start : start + micro] for name, tensor in mine.items()})
            built.backward(output.loss_sum * (size * len(starts) / count))
            norm = engine.update_weights(built, config.optimizer.clip_grad, refuses)
            loss_sum += output.loss_sum.detach()
        dist.all_reduce(loss_sum, group=group)
        curve.append((loss_sum.item() / count.item(), float(norm)))  # type: ignore[arg-type]
    return curve


def whole_curve(config: RunConfig) -> Curve:
    with groups_of(config.training.tensor_model_parallel_size):
        built = build(config)
        curve = train_steps(built, config, 0, STEPS)
        built.destroy()
        return curve


def curves(world_size: int, folder: Path) -> dict[str, Curve]:
    """The middle layout in the cells of two processes; the others where most is split."""
    del folder
    return _curves(
        world_size,
        lambda layout, size, stage, precision: (
            (layout == "2sf:4sf" and (precision == "fp32" or size == 1)) or (size, stage) == (2, 3)
        ),
    )


def all_curves(world_size: int, folder: Path) -> dict[str, Curve]:
    """Every cell of the table with 2 processes; the middle layout with 2 x 2."""
    del folder
    return _curves(world_size, lambda *_: True)


def _curves(world_size: int, is_wanted: Callable[[str, int, int, str], bool]) -> dict[str, Curve]:
    found = {}
    for tensor_parallel_size in (1, 2) if world_size == 2 else (2,):
        for layout in LAYOUTS if world_size == 2 else ("2sf:4sf",):
            for stage in (0, 1, 2, 3):
                for precision in ("fp32", "bf16") if stage > 0 and layout == "2sf:4sf" else ("fp32",):
                    if not is_wanted(layout, tensor_parallel_size, stage, precision):
                        continue
                    config = configuration(
                        layout, tensor_model_parallel_size=tensor_parallel_size, zero_stage=stage, precision=precision
                    )
                    found[f"{layout} tp{tensor_parallel_size} zero{stage} {precision}"] = whole_curve(config)
    return found


def variants(world_size: int, folder: Path) -> dict[str, Curve]:
    """Accumulation, offload and tensor parallel 4."""
    del world_size, folder
    found = {}
    for stage in (0, 1, 2, 3):
        for micro in (1, 4):  # 2 data-parallel groups of 4 rows: 4 micro-batches, or one
            config = configuration(zero_stage=stage, tensor_model_parallel_size=2, micro_batch_size=micro)
            found[f"accumulation zero{stage} micro{micro}"] = whole_curve(config)
    for stage in (1, 2, 3):
        found[f"offload zero{stage}"] = whole_curve(
            configuration(zero_stage=stage, tensor_model_parallel_size=2, offload_optimizer=True)
        )
    found["tp4"] = whole_curve(configuration(zero_stage=1, tensor_model_parallel_size=4))
    return found


def fp16(world_size: int, folder: Path) -> dict[str, Any]:
    """The curve at a loss scale that fits; and what happens at one that is far too large."""
    del folder
    get_accelerator().is_fp16_supported = lambda: True  # DeepSpeed's question is whether it would be fast
    found = {}
    for stage in (1, 2, 3):
        config = configuration(zero_stage=stage, precision="fp16", tensor_model_parallel_size=world_size)
        with groups_of(world_size):
            built = build(config)
            engine.set_loss_scaler_state(built, {"cur_scale": 2.0**8})
            curve = train_steps(built, config, 0, STEPS)
            built.destroy()
        with groups_of(world_size):
            built = build(config)
            # The first overflow is forgiven, the second halves the scale, at the smallest it stays.
            engine.set_loss_scaler_state(built, {"cur_scale": 2.0**40})
            overflowing = [train_steps(built, config, 0, 1)[0] for _ in range(3)]
            steps = optimizer_steps(built)
            state = engine.loss_scaler_state(built)
            built.optimizer.loss_scaler.cur_scale = built.optimizer.loss_scaler.min_scale = 2.0**40
            overflowing += [train_steps(built, config, 0, 1)[0] for _ in range(2)]
            built.destroy()
        found[f"zero{stage}"] = {"curve": curve, "overflowing": overflowing, "steps": steps, "state": state}
    return found


def muon_configuration(**training: Any) -> RunConfig:
    """Every kind of packed parameter: query, key, value; gates and values; keys and values of the frozen state."""
    config = configuration("2sf:4sf", **training)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, activation="geglu", narrow_kv="grouped:2"),
        optimizer=dataclasses.replace(config.optimizer, type="muon"),
    )


def muon(world_size: int, folder: Path) -> dict[str, Any]:
    """The curve of each split, and how many matrices all ranks together have orthogonalised in it."""
    del world_size, folder
    counted = 0

    def counting(matrices: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += len(matrices)
        return orthogonalise(matrices)

    muon_module.orthogonalise = counting
    found = {}
    for tensor_parallel_size in (1, 2):
        for stage in (0, 1, 2):
            counted = 0
            config = muon_configuration(tensor_model_parallel_size=tensor_parallel_size, zero_stage=stage)
            curve = whole_curve(config)
            total = torch.tensor(counted)
            dist.all_reduce(total)
            found[f"tp{tensor_parallel_size} zero{stage}"] = {"curve": curve, "orthogonalised": int(total)}
    for stage in (1, 2):
        config = muon_configuration(zero_stage=stage, precision="bf16")
        found[f"tp1 zero{stage} bf16"] = {"curve": whole_curve(config)}
    return found


def sums(world_size: int, folder: Path) -> dict[str, float]:
    """How far, in the 2-norm, a step's gradient of many micro-batches is from their sum in fp32."""
    del folder
    get_accelerator().is_fp16_supported = lambda: True
    found = {}
    for precision, stage, offload in [
        ("bf16", 1, False), ("bf16", 2, False), ("bf16", 3, False), ("bf16", 1, True), ("bf16", 2, True),
        ("fp16", 1, False), ("fp16", 2, False),
    ]:  # fmt: skip
        config = configuration(
            precision=precision, zero_stage=stage, offload_optimizer=offload, global_batch_size=REPEATS * ROWS
        )
        with groups_of(1):
            built = build(config)
            engine.set_loss_scaler_state(built, {"cur_scale": 1.0} if precision == "fp16" else None)
            torch.manual_seed(config.training.seed)
            plain = NarrowBertForPretraining(config.model, VOCAB, padded_vocab_size(VOCAB, 1))
            plain.to(torch.bfloat16 if precision == "bf16" else torch.float16)
            wanted = _summed_gradients(built, plain, world_size)
            found[f"{precision} zero{stage}{' offload' * offload}"] = _distance(built, wanted)
            built.destroy()
    return found


def refused(world_size: int, folder: Path) -> dict[str, Any]:
    """Two steps in every precision and stage, from the start and after a step whose update is refused."""
    del world_size, folder
    get_accelerator().is_fp16_supported = lambda: True
    found = {}
    for precision, stage, *offload in [
        ("fp32", 0), ("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 1), ("fp16", 2),
        ("fp16", 3), ("fp32", 1, "offload"), ("bf16", 1, "offload"), ("bf16", 2, "offload"), ("bf16", 3, "offload"),
    ]:  # fmt: skip
        config = configuration(precision=precision, zero_stage=stage, offload_optimizer=bool(offload))
        asked: list[float] = []
        curves, scales, updates = [], [], []
        for refuse in (False, True):
            with groups_of(1):
                built = build(config)
                engine.set_loss_scaler_state(built, {"cur_scale": 1024.0} if precision == "fp16" else None)
                if refuse:
                    train_steps(built, config, 0, 1, lambda norm, asked=asked: asked.append(norm) is None)
                scales.append(engine.loss_scaler_state(built))
                updates.append(optimizer_steps(built))
                curves.append(train_steps(built, config, 0, 2, lambda _: False))
                built.destroy()
        name = " ".join([precision, f"zero{stage}", *offload])
        found[name] = {"curves": curves, "asked": asked, "scales": scales, "updates": updates}
    return found


def _summed_gradients(built: Any, plain: torch.nn.Module, world_size: int) -> list[torch.Tensor]:
    """Give an engine the micro-batches of one step; the fp32 sum over ranks of what a plain model makes of them."""
    wanted = [torch.zeros(parameter.shape) for parameter in plain.parameters()]
    for batch in map(rows, range(REPEATS)):
        mine = {name: tensor[dist.get_rank() :: world_size] for name, tensor in batch.items()}
        for start in range(0, ROWS // world_size, 2):
            micro = {name: tensor[start : start + 2] for name, tensor in mine.items()}
            plain.zero_grad()
            plain(**micro).loss_sum.backward()
            for total, parameter in zip(wanted, plain.parameters(), strict=True):
                total += parameter.grad.float()
            built.backward(built(**micro).loss_sum)
            engine.update_weights(built, 0.0)
    for total in wanted:
        dist.all_reduce(total)
    return wanted


def _distance(built: Any, wanted: list[torch.Tensor]) -> float:
    """Of the gradient in the first moments after one step, relative to its length; scaling is left out of it."""
    products = torch.zeros(3, dtype=torch.float64)
    for total, parameter in zip(wanted, built.module.parameters(), strict=True):
        held = engine.local_part(built, parameter, "exp_avg")
        if held is not None:
            start, got = held[0], held[1].double()
            there = total.reshape(-1)[start : start + got.numel()].double()
            products += torch.stack([(got * got).sum(), (got * there).sum(), (there * there).sum()])
    dist.all_reduce(products)
    cosine = products[1] / (products[0] * products[2]).sqrt()
    return (2 - 2 * cosine).clamp(min=0).sqrt().item()


def muon_checkpoints(world_size: int, folder: Path) -> dict[str, Any]:
    """Topologies that Muon can split: another slicing of matrices each time."""
    return checkpoints(world_size, folder, [(2, 1), (1, 2), (2, 0), (1, 1), (4, 2)], muon_configuration)


def checkpoints(
    world_size: int,
    folder: Path,
    topologies: Sequence[tuple[int, int]] = ((2, 3), (1, 1), (2, 0), (1, 3), (4, 2)),
    configure: Callable[..., RunConfig] = configuration,
) -> dict[str, Any]:
    """Save on one topology, continue on the next, and so on; every load is saved again at once."""
    del world_size
    curve: Curve = []
    wrong: list[str] = []
    before: Path | None = None
    # Tensor-parallel size and ZeRO stage of each step; the data-parallel size follows (4 / the first).
    for step, (tensor_parallel_size, stage) in enumerate(topologies):
        config = configure(tensor_model_parallel_size=tensor_parallel_size, zero_stage=stage)
        with groups_of(tensor_parallel_size):
            torch.manual_seed(99)  # other weights: what is right came from the file
            model = NarrowBertForPretraining(config.model, VOCAB, padded_vocab_size(VOCAB, tensor_parallel_size))
            if before is not None:
                load_weights(model, before)
                built = engine.build_engine(config, model, torch.device("cpu"))
                load_optimizer(built, before, read_trainer_state(before))
                again = save(built, folder / f"again{step}", step)
                if dist.get_rank() == 0:
                    wrong += differences(before, again)
            else:
                built = build(config)
            curve += train_steps(built, config, step, step + 1)
            before = save(built, folder / "saved", step + 1)
            built.destroy()
    assert before is not None
    whole = NarrowBertForPretraining(config.model, VOCAB)
    load_weights(whole, before)  # one process, without padding
    return {"curve": curve, "wrong": wrong}


def saved_again(world_size: int, folder: Path) -> list[str]:
    """Load what the start before this one has saved beside ``folder``, save it again at once, and compare.

    Four processes: tensor parallel 2, data parallel 2, ZeRO 3; one process: ZeRO 1. The first start trains two steps.
    """
    tensor_parallel_size, stage = (2, 3) if world_size == 4 else (1, 1)
    config = configuration(tensor_model_parallel_size=tensor_parallel_size, zero_stage=stage)
    earlier = sorted(folder.parent.glob("saved-*"))
    with groups_of(tensor_parallel_size):
        if not earlier:
            built = build(config)
            train_steps(built, config, 0, 2)
        else:
            (before,) = earlier[-1].glob("step-*")
            torch.manual_seed(99)
            model = NarrowBertForPretraining(config.model, VOCAB, padded_vocab_size(VOCAB, tensor_parallel_size))
            load_weights(model, before)
            built = engine.build_engine(config, model, torch.device("cpu"))
            load_optimizer(built, before, read_trainer_state(before))
        saved = save(built, folder.parent / f"saved-{len(earlier)}", 2)
        built.destroy()
    return differences(before, saved) if earlier else []


def save(built: Any, folder: Path, step: int) -> Path:
    state = TrainerState(
        step=step, rows_consumed=step * ROWS, optimizer_steps=optimizer_steps(built), skipped_steps=0,
        lineage_id="", attempt=1, data_root_hash="", vocab_size=VOCAB, config={},
    )  # fmt: skip
    writer = CheckpointWriter(built, folder)
    writer.save(state)
    writer.wait()
    (saved,) = writer.finished()
    assert not saved.problem, saved.problem
    return saved.folder


def differences(first: Path, second: Path) -> list[str]:
    """What two checkpoints do not have in common, to the bit."""
    found = []
    for kind in KINDS:
        a, b = read_tensors(first, kind), read_tensors(second, kind)
        found += [f"{kind} {name}" for name in a.keys() ^ b.keys()]
        found += [f"{kind} {name}" for name in a.keys() & b.keys() if not torch.equal(a[name], b[name])]
    a, b = read_trainer_state(first), read_trainer_state(second)
    return [*found, *(["optimizer_steps"] if a.optimizer_steps != b.optimizer_steps else [])]


def dropout(world_size: int, folder: Path) -> dict[str, Any]:
    """With dropout on: what every tensor-parallel rank holds whole must get equal gradients."""
    del folder
    config = configuration("2sf:2sf", tensor_model_parallel_size=world_size, zero_stage=0)
    model_config = dataclasses.replace(config.model, hidden_dropout=0.2, attention_dropout=0.2)
    with groups_of(world_size):
        torch.manual_seed(1)
        model = NarrowBertForPretraining(model_config, VOCAB, padded_vocab_size(VOCAB, world_size))
        losses = []
        for seed in (1, 1, 2):
            model.zero_grad()
            seed_dropout(seed, 0, 0)
            loss = model(**rows(0)).loss_sum
            loss.backward()
            losses.append(loss.item())
        unequal = []
        for name, parameter in model.named_parameters():
            if not is_partitioned(parameter):
                of_ranks = [torch.empty_like(parameter) for _ in range(world_size)]
                dist.all_gather(of_ranks, parameter.grad)
                unequal += [name] if not torch.equal(of_ranks[0], of_ranks[1]) else []
        seed_dropout(5, 0, 0)
        with tensor_parallel_dropout(0.5):
            inside = torch.rand(4)
        outside = torch.rand(4)
        both: list[Any] = [None] * world_size
        dist.all_gather_object(both, (inside.tolist(), outside.tolist()))
    return {"losses": losses, "unequal": unequal, "drawn": both}


def main() -> None:
    function, rank, world_size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    gc.freeze()  # each configuration ends in a collection, which would go through all of torch
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # DeepSpeed looks at them, nobody connects
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    # The tiny weights would all count as too small to split.
    original = engine.deepspeed_config

    def split_everything(config: RunConfig, data_parallel_size: int) -> dict[str, Any]:
        content = original(config, data_parallel_size)
        content["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return content

    engine.deepspeed_config = split_everything
    result = globals()[function](world_size, folder)
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()

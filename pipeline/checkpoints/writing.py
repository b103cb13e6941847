"""Writes checkpoints in the background; training pauses only while the state is copied to host memory.

A save goes like this:

1. every rank copies what it holds of weights and moments (its part of ZeRO's partition) to host memory;
2. a thread sends the pieces of each parameter to the rank that writes it, over a gloo group of its own;
3. that rank writes whole tensors into safetensors files of a temporary folder, hashing as it writes;
4. rank 0 collects sizes and hashes and commits the folder (see ``commit``).

Until the commit nothing counts, so a kill at any point leaves the checkpoints before it as they were. A save
that the disk fails (it is full) leaves a line, and the next one starts from the beginning. Where the group fails,
no later save can work: its connections stay closed, and the ranks may be at different messages.
"""

import dataclasses
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from data_prep.contract.command_line import one_line
from pipeline.checkpoints.commit import commit, remove_superseded
from pipeline.checkpoints.format import KINDS, TEMPORARY, SizeAndHash, TrainerState
from pipeline.checkpoints.tensor_file import TensorFile
from pipeline.engine.deepspeed_engine import link_optimizer_state, local_part
from pipeline.engine.muon import kinds_of
from pipeline.engine.protocol import Engine
from pipeline.parallel.groups import data_parallel_group, tensor_parallel_group
from pipeline.parallel.whole_tensors import full_shape, is_partitioned, join_shards, shard_shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """How a save ended."""

    step: int
    """Whose state it was."""
    folder: Path
    """Where it is, if ``problem`` is empty."""
    seconds: float
    """From the copy to the rename."""
    problem: str
    """What went wrong, on one line; empty for a good end."""
    lost_connection: bool
    """Whether the ranks could not exchange their pieces: no save of this process will work any more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """A run of elements of one tensor-parallel shard of a parameter, flattened."""

    rank: int
    """Who holds it."""
    tensor_rank: int
    """Of which shard it is."""
    start: int
    """Its first element there."""
    numel: int
    """How many."""


class CheckpointWriter:
    """One per process. Every rank creates it, and calls ``save``, at the same points of the run.

    Args:
        engine: its weights and moments are saved.
        checkpoints: folder of the run's checkpoints.
        keep_last: committed checkpoints to keep; 0 keeps all.
        keep_every: keep those of steps that are multiples of this, whatever their age; 0 keeps none for that.
        may_commit: asked on rank 0 before the rename; False where a newer start of the run has taken over.
        on_progress: called now and then by the thread while it works.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Path,
        *,
        keep_last: int = 0,
        keep_every: int = 0,
        may_commit: Callable[[], bool] = lambda: True,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._checkpoints = engine, checkpoints
        self._keep_last, self._keep_every = keep_last, keep_every
        self._may_commit, self._on_progress = may_commit, on_progress
        # Its own group: the thread's messages never mix with those of the training.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._parameters: dict[str, nn.Parameter] = dict(engine.module.named_parameters())
        self._owner = _owners(self._parameters, dist.get_world_size())
        self._pieces = self._exchange_pieces()
        self._copies = self._host_memory()
        self._thread: threading.Thread | None = None
        self._finished: list[Saved] = []

    def save(self, state: TrainerState) -> float:
        """Begin to save the state of this moment; an unfinished save is waited for.

        Returns:
            Seconds that the caller stood still.
        """
        started = time.perf_counter()
        self.wait()
        self._copy()
        self._thread = threading.Thread(target=self._run, args=(state, started), name="checkpoint", daemon=True)
        self._thread.start()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Until nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finished(self) -> list[Saved]:
        """The saves that have ended since this was asked last; the same on every rank after ``wait``."""
        found, self._finished = self._finished, []
        return found

    def _copy(self) -> None:
        """Copy this rank's pieces into the host memory that is kept for them."""
        link_optimizer_state(self._engine)
        on_device = False
        for kind, name in self._copies:
            held = local_part(self._engine, self._parameters[name], kind)
            assert held is not None
            part = held[1].detach().reshape(-1)
            self._copies[kind, name].copy_(part, non_blocking=True)
            on_device |= part.is_cuda
        if on_device:
            torch.cuda.synchronize()

    def _host_memory(self) -> dict[tuple[str, str], torch.Tensor]:
        """Room for the copies; written to once, so that the first save need not wait for the kernel to give it."""
        on_cuda = next(iter(self._parameters.values())).is_cuda
        rank = dist.get_rank()
        return {
            (kind, name): torch.empty(piece.numel, dtype=torch.float32, pin_memory=on_cuda).zero_()
            for name in self._mine
            for piece in self._pieces[name]
            if piece.rank == rank
            for kind in kinds_of(self._parameters[name])
        }

    def _exchange_pieces(self) -> dict[str, list[_Piece]]:
        """Who holds what of every parameter; remembers the names of what this rank gives."""
        link_optimizer_state(self._engine)
        stage, tensor_rank = self._engine.zero_optimization_stage(), tensor_parallel_group().rank()
        mine: dict[str, tuple[int, int]] = {}
        for name, parameter in self._parameters.items():
            held = local_part(self._engine, parameter, "weights")
            # What several ranks hold alike, the first of them gives.
            repeated = (stage == 0 and dist.get_rank(data_parallel_group()) > 0) or (
                tensor_rank > 0 and not is_partitioned(parameter)
            )
            if held is not None and held[1].numel() and not repeated:
                mine[name] = (held[0], held[1].numel())
        self._mine = list(mine)
        tables: list[tuple[int, dict[str, tuple[int, int]]]] = [(0, {})] * dist.get_world_size()
        dist.all_gather_object(tables, (tensor_rank, mine), group=self._group)
        return {
            name: [
                _Piece(rank=rank, tensor_rank=its_tensor_rank, start=held[name][0], numel=held[name][1])
                for rank, (its_tensor_rank, held) in enumerate(tables)
                if name in held
            ]
            for name in self._parameters
        }

    def _run(self, state: TrainerState, started: float) -> None:
        lost_connection = False
        try:
            problem = self._write(state)
        except Exception as error:  # what a disk does is not among these: the exchange has broken off
            problem = one_line(f"rank {dist.get_rank()}: {type(error).__name__}: {error}")
            lost_connection = True
        self._finished.append(
            Saved(
                step=state.step,
                folder=self._final(state),
                seconds=time.perf_counter() - started,
                problem=problem,
                lost_connection=lost_connection,
            )
        )

    def _final(self, state: TrainerState) -> Path:
        return self._checkpoints / f"step-{state.step:08d}"

    def _write(self, state: TrainerState) -> str:
        """All of the save after the copy; what went wrong anywhere, the same text on every rank."""
        temporary = self._checkpoints / f"{TEMPORARY}step-{state.step:08d}-attempt-{state.attempt}"
        files: dict[str, SizeAndHash] = {}
        problem = ""
        for kind in KINDS:
            written, new_problem = self._write_kind(temporary, kind)
            files |= written
            problem = problem or new_problem
        reports: list[tuple[dict[str, SizeAndHash], str]] = [({}, "")] * dist.get_world_size()
        dist.all_gather_object(reports, (files, problem), group=self._group)
        problems = [text for _, text in reports if text]
        if not problems and dist.get_rank() == 0:
            try:
                commit(
                    temporary,
                    self._final(state),
                    state,
                    {name: facts for written, _ in reports for name, facts in written.items()},
                    may_commit=self._may_commit,
                )
                remove_superseded(self._checkpoints, state.step, self._keep_last, self._keep_every)
            except Exception as error:  # whatever it was, the other ranks wait for the outcome
                problems = [f"rank 0: {error}"]
        outcome = ["; ".join(problems)]
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[0] and dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        return outcome[0]

    def _write_kind(self, folder: Path, kind: str) -> tuple[dict[str, SizeAndHash], str]:
        """Write the tensors of a kind that are this rank's to write. Returns (size and hash by file name, problem).

        What cannot be written stops no rank: the others wait for our pieces.
        """
        rank, size = dist.get_rank(), dist.get_world_size()
        names = [name for name, parameter in self._parameters.items() if kind in kinds_of(parameter)]
        shapes = {name: full_shape(self._parameters[name]) for name in names if self._owner[name] == rank}
        name = f"{kind}-{rank:05d}-of-{size:05d}.safetensors"
        file, problem = None, ""
        try:
            if shapes:
                folder.mkdir(parents=True, exist_ok=True)
                file = TensorFile(folder / name, shapes)
        except OSError as error:
            problem = f"rank {rank}: {error}"
        for parameter_name in names:
            tensor = self._assemble(kind, parameter_name)
            self._on_progress()
            try:
                if tensor is not None and file is not None and not problem:
                    file.write(tensor)
            except OSError as error:
                problem = f"rank {rank}: {folder / name}: {error}"
        written = {}
        try:
            if file is not None:
                written = {name: file.close()}
        except OSError as error:
            problem = problem or f"rank {rank}: {folder / name}: {error}"
        return written, problem

    def _assemble(self, kind: str, name: str) -> torch.Tensor | None:
        """Send our pieces of a parameter to its owner; there, the whole tensor."""
        rank, owner = dist.get_rank(), self._owner[name]
        if rank != owner:
            for piece in self._pieces[name]:
                if piece.rank == rank:
                    dist.send(self._copies[kind, name], owner, group=self._group)
            return None
        parameter = self._parameters[name]
        shape = shard_shape(parameter)
        shards = [
            torch.empty(math.prod(shape), dtype=torch.float32)
            for _ in range(1 + max(piece.tensor_rank for piece in self._pieces[name]))
        ]
        for piece in self._pieces[name]:
            place = shards[piece.tensor_rank][piece.start : piece.start + piece.numel]
            if piece.rank == rank:
                place.copy_(self._copies[kind, name])
            else:
                dist.recv(place, piece.rank, group=self._group)
        return join_shards([shard.view(shape) for shard in shards], parameter)


def _owners(parameters: Mapping[str, nn.Parameter], world_size: int) -> dict[str, int]:
    """Which rank writes which parameter: largest first, each to the rank with the least to write."""
    sizes = {name: math.prod(full_shape(parameter)) for name, parameter in parameters.items()}
    load = [0] * world_size
    owner: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += sizes[name]
    return owner

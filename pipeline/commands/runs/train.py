"""``narrowbert train``."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from data_prep.contract.command_line import UserError, part_of, read_config, report_user_error
from data_prep.contract.shell.streams import flush_or_give_up
from pipeline.commands import COMMANDS
from pipeline.config import RunConfig
from pipeline.initialisation.check import check_start
from pipeline.processes.launch import die_with_launcher, start_local_processes
from pipeline.processes.signals import (
    LOST_CONNECTION_EXIT_CODE,
    LostConnectionError,
    catch_stop_signals,
    ignore_stop_signals,
)
from pipeline.processes.world import SINGLE_PROCESS, choose_world
from pipeline.runs.directory import check_run, is_finished, make_run_dir, restore_run_files
from pipeline.runs.time_budget import as_recorded
from pipeline.tracking.description import check_tracking


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(RunConfig):
    """A run and how many processes to start for it."""

    processes: int | None = None
    """Processes to start on this machine (default 1). Under torchrun or srun leave it out: this process joins those."""
    profile: int | None = None
    """Steps of the first process to record by torch's profiler, from the third of this start on, into logs/profile."""


def run(argv: Sequence[str]) -> int:
    """Train in this process, or start the processes that do; the exit code of the run."""
    die_with_launcher()
    catch_stop_signals()
    code = _train(argv)
    ignore_stop_signals()
    return code


def _train(argv: Sequence[str]) -> int:
    arguments = read_config(TrainArguments, argv, "narrowbert train", COMMANDS["train"])
    config = as_recorded(part_of(RunConfig, arguments))
    joined, processes = choose_world(arguments.processes)
    # Here, before anything heavy is imported or started: a mistake is one quick line.
    check_tracking(config.tracking)
    if arguments.profile is not None and arguments.profile < 1:
        raise UserError(f"profile is {arguments.profile}: give a positive number of steps")
    shards = check_run(config, processes)
    if is_finished(config):
        if joined is None or joined.rank == 0:
            restore_run_files(config, shards)
            print(f"{config.run_dir} is finished: nothing to do")
        return 0
    check_start(config, shards)
    make_run_dir(config)
    if joined is None and processes > 1:
        debug = ["--debug"] if "--debug" in sys.argv else []
        return start_local_processes(processes, ["train", *argv, *debug], Path(config.run_dir) / "logs")
    from pipeline.training.loop import train

    try:
        code = train(config, joined or SINGLE_PROCESS, shards, profile_steps=arguments.profile or 0)
        flush_or_give_up()  # the log files have it too
        return code
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        # An orderly end of the process group needs every rank. Without it the interpreter's own shutdown aborts now
        # and then ("terminate called without an active exception"), which would hide the exit code.
        _exit_now(report_user_error("narrowbert", error))
    except LostConnectionError as error:
        if "--debug" in sys.argv:
            raise
        sys.stderr.write(f"narrowbert: {error}\n")
        _exit_now(LOST_CONNECTION_EXIT_CODE)


def _exit_now(code: int) -> NoReturn:
    flush_or_give_up()
    sys.stderr.flush()
    os._exit(code)

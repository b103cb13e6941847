"""The ``narrowbert-submit`` command."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TypeVar

from cluster.config import ClusterConfig
from data_prep.config import PrepConfig
from data_prep.contract.command_line import (
    Parser,
    UserError,
    choose_command,
    part_of,
    path_argument,
    read_config,
    refuse_old_options,
    run_command,
)
from pipeline.config import RunConfig

Part = TypeVar("Part")

PROGRAM = "narrowbert-submit"

COMMANDS = {
    "train": "Check everything, then send a training run as one job that continues by itself until it is done.",
    "prep": "Send the stages of narrowbert-prep as jobs and job arrays.",
    "status": "Show the state of the jobs, step, loss, speed and time left.",
    "logs": "Show what the jobs and their ranks wrote, with --follow until the end.",
    "cancel": "End a run after a checkpoint, or at once with --now.",
}
DESCRIPTION = f"""Training and preparation on a SLURM cluster.

  {PROGRAM} train --config configs/pretrain/narrowbert-base.yaml --cluster configs/cluster/h100x8.yaml \\
      --cluster.nodes 4 --run_dir /shared/runs/mine
  {PROGRAM} status /shared/runs/mine"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJobArguments(RunConfig):
    """A run, and the cluster it is sent to."""

    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)
    """The cluster: a file such as configs/cluster/h100x8.yaml."""
    dry_run: bool = False
    """Print the batch script and send nothing; needs no Slurm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepJobArguments(PrepConfig):
    """Shards to make, and the cluster that makes them."""

    cluster: ClusterConfig = dataclasses.field(default_factory=ClusterConfig)
    """The cluster: a file such as configs/cluster/cpu-nodes.yaml."""
    dry_run: bool = False
    """Print the batch script and send nothing; needs no Slurm."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(PROGRAM, _dispatch, sys.argv[1:]))


def _dispatch(argv: Sequence[str]) -> None:
    command = choose_command(PROGRAM, DESCRIPTION, COMMANDS, argv)
    {"train": _train, "prep": _prep, "status": _status, "logs": _logs, "cancel": _cancel}[command](argv[1:])


def _train(argv: Sequence[str]) -> None:
    arguments = _read(TrainJobArguments, argv, "train")
    from cluster.submit import submit_train

    print(submit_train(part_of(RunConfig, arguments), arguments.cluster, dry_run=arguments.dry_run))


def _prep(argv: Sequence[str]) -> None:
    arguments = _read(PrepJobArguments, argv, "prep")
    from cluster.prep import submit_prep

    print(submit_prep(part_of(PrepConfig, arguments), arguments.cluster, dry_run=arguments.dry_run))


def _read(cls: type[Part], argv: Sequence[str], command: str) -> Part:
    return read_config(cls, _with_dry_run(argv), f"{PROGRAM} {command}", COMMANDS[command])


def _with_dry_run(argv: Sequence[str]) -> list[str]:
    """``--dry_run`` alone, as is usual, for ``--dry_run true``."""
    refuse_old_options(argv, {"--dry-run": "--dry_run"})
    written = list(argv)
    for place, argument in enumerate(argv):
        if argument == "--dry_run" and argv[place + 1 : place + 2] not in (["true"], ["false"]):
            written[place] = "--dry_run=true"
    return written


def _status(argv: Sequence[str]) -> None:
    parser = _folder_parser("status")
    arguments = parser.parse_args(argv)
    from cluster.status import status

    print(status(arguments.folder))


def _logs(argv: Sequence[str]) -> None:
    parser = _folder_parser("logs")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the jobs have ended")
    parser.add_argument("--lines", type=int, default=50, help="of each file that is there already (default: 50)")
    arguments = parser.parse_args(argv)
    if arguments.lines < 0:
        raise UserError(f"--lines is {arguments.lines}: give a number of at least 0")
    from cluster.status import logs

    logs(arguments.folder, lines=arguments.lines, follow=arguments.follow, write=lambda line: print(line, flush=True))


def _cancel(argv: Sequence[str]) -> None:
    parser = _folder_parser("cancel")
    parser.add_argument("--now", action="store_true", help="without a checkpoint")
    arguments = parser.parse_args(argv)
    from cluster.status import cancel

    print(cancel(arguments.folder, now=arguments.now))


def _folder_parser(command: str) -> Parser:
    parser = Parser(f"{PROGRAM} {command}", description=COMMANDS[command])
    parser.add_argument(
        "folder", type=path_argument, metavar="RUN_DIR", help="the run directory, or the shard folder of prep"
    )
    return parser


if __name__ == "__main__":
    main()

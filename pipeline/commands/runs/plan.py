"""``narrowbert plan``."""

import dataclasses
from collections.abc import Sequence

from data_prep.contract.command_line import part_of, read_config
from pipeline.commands import COMMANDS
from pipeline.config import RunConfig
from pipeline.planning.plan import PlanOptions, plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(RunConfig, PlanOptions):
    """A run and what to plan it for."""


def run(argv: Sequence[str]) -> None:
    """Print the plan."""
    arguments = read_config(PlanArguments, argv, "narrowbert plan", COMMANDS["plan"])
    print(plan(part_of(RunConfig, arguments), part_of(PlanOptions, arguments)))

"""``narrowbert finetune``."""

from collections.abc import Sequence

from data_prep.contract.command_line import read_config, refuse_old_options
from pipeline.commands import COMMANDS
from pipeline.finetune.config import FinetuneConfig, check_finetune


def run(argv: Sequence[str]) -> None:
    """Train, measure, and print the table of results."""
    refuse_old_options(argv, {"--output_dir": "--output"})
    config = read_config(FinetuneConfig, argv, "narrowbert finetune", COMMANDS["finetune"], {"output_dir": "output"})
    check_finetune(config)
    from pipeline.finetune.training import finetune

    print(finetune(config, say=lambda line: print(line, flush=True)).table)

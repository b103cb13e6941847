"""What the commands of ``narrowbert-prep`` share: their program's name, and how they read their arguments."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data_prep.config import PrepConfig, check_config
from data_prep.contract.command_line import Parser, path_or_url_argument, read_config

if TYPE_CHECKING:
    from data_prep.stages.finish import Summary

PROGRAM = "narrowbert-prep"


def prep_config(argv: Sequence[str], command: str, description: str) -> PrepConfig:
    """The checked configuration that the options of ``command`` give.

    Raises:
        UserError: an option or a value is wrong.
    """
    config = read_config(PrepConfig, argv, f"{PROGRAM} {command}", description)
    check_config(config)
    return config


def print_summary(output: str, summary: "Summary", seconds: float) -> None:
    """Tell what a folder holds and how long it took."""
    if summary.already_there:
        print(f"{output} is complete already, made from the same corpus and configuration")
    for name, counts in summary.splits.items():
        print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['rows']:,} rows")
    print(f"[UNK]: {summary.unknown_share:.3%} of the tokens")
    if summary.rejects:
        print(f"not in the shards: {listed(summary.rejects)} (each is in {output}/rejects.jsonl.gz)")
    print(f"{output}: {summary.size:,} bytes, root hash {summary.root_hash}, {seconds:.1f} s")


def folder_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that reads one shard folder."""
    parser = Parser(prog=f"{PROGRAM} {command}", description=description)
    parser.add_argument("folder", type=path_or_url_argument, help="the shard folder, or its URL")
    return parser


def listed(rejects: Mapping[str, int]) -> str:
    """Counts of rejects as one line."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejects.items()))

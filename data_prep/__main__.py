"""The command ``narrowbert-prep``: vocab | shards | repack | append | remask | verify | inspect | upload."""

import sys
from collections.abc import Sequence

from data_prep.commands import append, inspect, remask, repack, shards, upload, verify, vocab
from data_prep.commands.arguments import PROGRAM
from data_prep.contract.command_line import UserError, choose_command, run_command
from data_prep.contract.files import raise_descriptor_limit

COMMANDS = {
    "vocab": "Train a tokenizer on a corpus and write tokenizer.json.",
    "shards": "Tokenize, pack and mask the same corpus into a shard folder.",
    "repack": "Make shards of other rows out of a folder that has kept its documents.",
    "append": "Make shards of such a folder's documents and of new ones.",
    "remask": "Make shards of the same rows as a folder's, with other masks.",
    "verify": "Check every byte and every row of a shard folder.",
    "inspect": "Print rows of a shard folder as text, with their masks.",
    "upload": "Copy a shard folder into an object store.",
}
DESCRIPTION = f"""Text into verified, pre-masked shards for `narrowbert train`.

Your own text, with the same options for both commands:
  {PROGRAM} vocab  --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards
  {PROGRAM} shards --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code (0 done, 2 a mistake that the user can fix)."""
    raise_descriptor_limit()
    return run_command(PROGRAM, _main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    modules = (vocab, shards, repack, append, remask, verify, inspect, upload)
    run = {name: module.run for name, module in zip(COMMANDS, modules, strict=True)}
    command = choose_command(PROGRAM, DESCRIPTION, COMMANDS, argv)
    if len(argv) > 1:
        return run[command](argv[1:])
    try:  # without a single option: the command's help, though nothing was done
        return run[command](["--help"])
    except SystemExit:
        raise UserError(f"{command} was given nothing: what it takes is listed above") from None


if __name__ == "__main__":
    sys.exit(main())

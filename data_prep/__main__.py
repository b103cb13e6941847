"""The command ``narrowbert-prep``: vocab | shards | verify | inspect."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.config import PrepConfig, check, tokenizer_path
from data_prep.contract.command_line import (
    USER_ERROR_EXIT_CODE,
    Parser,
    UserError,
    choose_command,
    read_config,
    run_command,
)

PROGRAM = "narrowbert-prep"
COMMANDS = {
    "vocab": "Train a tokenizer on a corpus and write tokenizer.json.",
    "shards": "Tokenize, pack and mask the same corpus into a shard folder.",
    "verify": "Check every byte and every row of a shard folder.",
    "inspect": "Print rows of a shard folder as text, with their masks.",
}
DESCRIPTION = f"""Text into verified, pre-masked shards for `narrowbert train`.

Your own text, with the same options for both commands:
  {PROGRAM} vocab  --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards
  {PROGRAM} shards --config configs/prep/quickstart.yaml --corpus.paths '[my/*.jsonl.gz]' --output my-shards"""


SHARDS_DESCRIPTION = """Tokenize, pack and mask the corpus into a shard folder. On a cluster, the same command
with --task plan, then map, duplicates, pack, order, reduce and finish, each after the one before it has ended;
--index N runs one task of a stage, on any machine that sees the output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code (0 done, 2 a mistake the user can mend)."""
    return run_command(PROGRAM, _main, sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    run = {"vocab": _vocab, "shards": _shards, "verify": _verify, "inspect": _inspect}
    command = choose_command(PROGRAM, DESCRIPTION, COMMANDS, argv)
    if len(argv) > 1:
        return run[command](argv[1:])
    try:  # without a single option: the command's help, though nothing was done
        return run[command](["--help"])
    except SystemExit:
        return USER_ERROR_EXIT_CODE


def _config(argv: Sequence[str], command: str, description: str) -> PrepConfig:
    config = read_config(PrepConfig, argv, f"{PROGRAM} {command}", description)
    check(config)
    return config


def _vocab(argv: Sequence[str]) -> int:
    from data_prep.contract.tokenizer import save_tokenizer, tokenizer_hash
    from data_prep.corpus.files import find_corpus_files
    from data_prep.corpus.reading import read_texts
    from data_prep.tokens.vocabulary import train_tokenizer

    config = _config(argv, "vocab", "Train a tokenizer on the corpus and write tokenizer.json.")
    start = time.monotonic()
    path = tokenizer_path(config)
    files = find_corpus_files(config.corpus)
    rejects: Counter[str] = Counter()
    with _Progress() as progress:

        def texts() -> Iterator[str]:
            progress.start("read", 0, "B")
            rejects.clear()
            for text in read_texts(files, config, rejects):
                progress.advance(len(text), 1)
                yield text

        try:
            tokenizer = train_tokenizer(texts, config.vocabulary)
        except UserError as error:
            raise UserError(f"{error}{f' (rejected: {_listed(rejects)})' if rejects else ''}") from error
    if rejects:
        print(f"not in the vocabulary: {_listed(rejects)} (`{PROGRAM} shards` lists each)")
    new = save_tokenizer(tokenizer, path)
    print(
        f"{path}{'' if new else ' (the same was there already)'}: {tokenizer.get_vocab_size()} entries, "
        f"sha256 {tokenizer_hash(path)}, {time.monotonic() - start:.1f} s"
    )
    return 0


def _shards(argv: Sequence[str]) -> int:
    from data_prep.stages.build import build_shards, run_task
    from data_prep.stages.records import STAGES

    parser = Parser(prog=f"{PROGRAM} shards", add_help=False)
    parser.add_argument("--task", choices=STAGES)
    parser.add_argument("--index", type=int)
    options, rest = parser.parse_known_args(argv)
    config = _config(rest, "shards", SHARDS_DESCRIPTION)
    if options.index is not None and options.task in (None, "plan", "finish"):
        raise UserError("--index goes with --task map, duplicates, pack, order or reduce")
    start = time.monotonic()
    with _Progress() as progress:
        if options.task:
            line = run_task(config, options.task, options.index, progress)
            print(f"{line}, {time.monotonic() - start:.1f} s")
            return 0
        summary = build_shards(config, progress)
    if summary.already_there:
        print(f"{config.output} is complete already, made from the same corpus and configuration")
    for name, counts in summary.splits.items():
        print(f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['rows']:,} rows")
    if summary.rejects:
        print(f"not in the shards: {_listed(summary.rejects)} (each is in {config.output}/rejects.jsonl.gz)")
    print(f"{config.output}: {summary.size:,} bytes, root hash {summary.root_hash}, {time.monotonic() - start:.1f} s")
    return 0


def _listed(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejects.items()))


def _verify(argv: Sequence[str]) -> int:
    from data_prep.contract.verification import verify

    parser = _parser("verify", "Check every byte and every row of a shard folder.")
    found = verify(parser.parse_args(argv).folder)
    for problem in found.problems:
        print(f"{PROGRAM}: error: {problem}", file=sys.stderr)
    if found.problems:
        return USER_ERROR_EXIT_CODE
    print(f"verified {found.summary}")
    return 0


def _inspect(argv: Sequence[str]) -> int:
    from data_prep.contract.shard_format import SPLITS
    from data_prep.contract.shards import open_shards
    from data_prep.report.rows_as_text import rows_as_text

    parser = _parser("inspect", "Print rows of a shard folder as text, with their masks.")
    parser.add_argument("--split", default="train", choices=SPLITS, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=3, help="how many rows; default: %(default)s")
    parser.add_argument("--variant", type=int, default=0, help="which of the maskings; default: %(default)s")
    options = parser.parse_args(argv)
    shards = open_shards(options.folder)
    if not 0 <= options.variant < shards.num_variants:
        raise UserError(f"--variant {options.variant}: the shards hold variants 0 to {shards.num_variants - 1}")
    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: expected 1 or more")
    split = shards.split(options.split)
    print(
        f"{options.folder} {split.name}: {split.num_rows:,} rows of {shards.seq_length} tokens, "
        f"{shards.num_variants} variants of {shards.masked_per_row} masks, root hash {shards.root_hash}"
    )
    print("{house->[MASK]} was masked, {house->tree} replaced, {house=} chosen but kept, | a document's start\n")
    for row in rows_as_text(shards, options.split, options.rows, options.variant):
        print(row)
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"{PROGRAM} {command}", description=description)
    parser.add_argument("folder", help="the shard folder, or its URL")
    return parser


class _Progress:
    """How the work goes on: a bar on a terminal, a line for each finished stage in a log file."""

    def __enter__(self) -> "_Progress":
        self._bar: Any = None
        self._stage = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage of ``total`` units (0: unknown) begins."""
        from tqdm import tqdm

        self._end()
        self._stage, self._documents, self._began = stage, 0, time.monotonic()
        self._done, self._unit = 0, unit
        if sys.stderr.isatty():
            self._bar = tqdm(
                desc=stage, total=total or None, unit=unit, unit_scale=unit == "B", leave=False, dynamic_ncols=True
            )

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        self._done += count
        self._documents += documents
        if self._bar is not None:
            if self._documents:
                rate = self._documents / max(time.monotonic() - self._began, 1e-3)
                self._bar.set_postfix_str(f"{rate:,.0f} documents/s", refresh=False)
            self._bar.update(count)

    def note(self, message: str) -> None:
        """A line on stderr."""
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._stage:
            seconds = time.monotonic() - self._began
            size = f"{self._done / 1e6:,.1f} MB" if self._unit == "B" else f"{self._done:,} {self._unit}"
            documents = f", {self._documents:,} documents" if self._documents else ""
            rate = f", {self._done / 1e6 / max(seconds, 1e-3):.1f} MB/s" if self._unit == "B" else ""
            print(f"{self._stage}: {size}{documents} in {seconds:.1f} s{rate}", flush=True)
        self._stage = ""


if __name__ == "__main__":
    sys.exit(main())

"""``narrowbert encode``."""

import sys
from collections.abc import Sequence

from data_prep.contract.command_line import Parser, part_of, path_argument
from data_prep.contract.shell.streams import lines_and_output
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Write one JSON object per line of stdin to stdout."""
    parser = Parser(
        "narrowbert encode", description=f"{COMMANDS['encode']} They keep their order. Texts that are too long are cut."
    )
    parser.add_argument("--model", type=path_argument, required=True, help="exported or fine-tuned folder")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="embeddings (default: predictions if there are any)")
    parser.add_argument("--pairs", action="store_true", help="a line is two texts with a tab between them")
    parser.add_argument("--max_length", type=int, help="tokens per text (default: what the model can read)")
    parser.add_argument("--batch_tokens", type=int, default=8192, help="tokens per batch, with padding")
    parser.add_argument("--window", type=int, default=2048, help="lines that are sorted by length at a time")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    arguments = parser.parse_args(argv)
    from pipeline.inference.encode import EncodeOptions, encode

    cut = encode(part_of(EncodeOptions, arguments), *lines_and_output())
    if cut:
        print(f"{cut} texts were longer than the model reads and were cut", file=sys.stderr)

"""``narrowbert evaluate``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, path_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Print loss, perplexity and accuracy."""
    parser = Parser("narrowbert evaluate", description=COMMANDS["evaluate"])
    parser.add_argument("run_dir", type=path_argument)
    parser.add_argument("--max_rows", type=int, default=None, help="validation rows to read (default: all)")
    arguments = parser.parse_args(argv)
    from pipeline.training.validation import evaluate_run

    step, result = evaluate_run(arguments.run_dir, arguments.max_rows)
    print(
        f"step {step}  validation loss {result.loss:.4f}  perplexity {result.perplexity:.2f}  "
        f"masked accuracy {result.masked_accuracy:.4f}  ({result.num_masked:,} masked tokens)"
    )

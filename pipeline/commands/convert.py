"""``narrowbert convert``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, path_argument
from pipeline.commands import COMMANDS
from pipeline.commands.export import how_to_load


def run(argv: Sequence[str]) -> None:
    """Write the folder and print what was taken from the model and what differs."""
    parser = Parser("narrowbert convert", description=COMMANDS["convert"])
    parser.add_argument("model", type=path_argument, metavar="MODEL_DIR", help="BERT or NarrowBERT of transformers")
    parser.add_argument("--output", type=path_argument, required=True, help="new folder to write")
    parser.add_argument("--layout", help="layout to write, such as 2sf:10sf (default: that of MODEL_DIR)")
    parser.add_argument(
        "--tokenizer", type=path_argument, help="its tokenizer.json or vocab.txt (default: that in MODEL_DIR)"
    )
    parser.add_argument("--allow", nargs="+", default=[], metavar="NAME", help="tensors to leave out: bert.pooler.*")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="how sentence-transformers makes embeddings")
    arguments = parser.parse_args(argv)
    from pipeline.initialisation.pretrained import export_pretrained

    lines = export_pretrained(
        arguments.model,
        arguments.output,
        layout=arguments.layout,
        tokenizer_path=arguments.tokenizer,
        allow=arguments.allow,
        pooling=arguments.pooling,
    )
    for line in [*lines, how_to_load(arguments.output)]:
        print(line)

"""``narrowbert convert``."""

import argparse
from collections.abc import Sequence

from data_prep.contract.command_line import Parser, UserError, path_argument
from pipeline.commands import COMMANDS
from pipeline.commands.models.export import MODEL_TYPE_HELP, MODEL_TYPES, how_to_load


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
    parser.add_argument("--model_type", choices=MODEL_TYPES, default=MODEL_TYPES[0], help=MODEL_TYPE_HELP)
    arguments = parser.parse_args(argv)
    for line in [*_convert(arguments), how_to_load(arguments.output, arguments.model_type)]:
        print(line)


def _convert(arguments: argparse.Namespace) -> list[str]:
    if arguments.model_type != MODEL_TYPES[0]:
        from pipeline.export.plain.tuned import export_tuned, is_tuned

        if is_tuned(arguments.model):
            given = [name for name in ("layout", "tokenizer", "allow") if getattr(arguments, name)]
            if given:
                raise UserError(f"--{given[0]} is for masked-LM models, and {arguments.model} is none: leave it out")
            return export_tuned(arguments.model, arguments.output, arguments.model_type, arguments.pooling)
    from pipeline.initialisation.pretrained import export_pretrained

    return export_pretrained(
        arguments.model,
        arguments.output,
        layout=arguments.layout,
        tokenizer_path=arguments.tokenizer,
        allow=arguments.allow,
        pooling=arguments.pooling,
        model_type=arguments.model_type,
    )

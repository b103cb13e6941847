"""``narrowbert resize``."""

from collections.abc import Sequence
from typing import get_args

from data_prep.contract.command_line import Parser, UserError, path_argument, path_or_url_argument
from pipeline.commands import COMMANDS
from pipeline.config import Depth, GrowthMethod

SIZES = ("hidden_size", "num_attention_heads", "ffn_hidden_size")


def run(argv: Sequence[str]) -> None:
    """Write the folder and print what became of what."""
    parser = Parser("narrowbert resize", description=COMMANDS["resize"])
    parser.add_argument(
        "source", type=path_or_url_argument, metavar="SOURCE", help="RUN_DIR, RUN_DIR@STEP, or a folder of transformers"
    )
    parser.add_argument("--output", type=path_argument, required=True, help="new folder to write")
    for name in SIZES:
        parser.add_argument(f"--model.{name}", type=int, dest=name, metavar="N", help="of the new model")
    parser.add_argument("--model.layout", dest="layout", metavar="LAYOUT", help="of the new model, such as 2sf:10sf")
    parser.add_argument(
        "--growth", choices=get_args(GrowthMethod), default="fpi", help="as init.growth of train (default: fpi)"
    )
    parser.add_argument(
        "--depth", choices=get_args(Depth), default="stack", help="as init.depth of train (default: stack)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of what is drawn")
    parser.add_argument(
        "--blend", type=path_or_url_argument, metavar="SOURCE", help="a model of the new sizes to blend with"
    )
    parser.add_argument("--alpha", type=float, help="share of the resized model in the blend, such as 0.5")
    arguments = parser.parse_args(argv)
    sizes = {name: getattr(arguments, name) for name in (*SIZES, "layout") if getattr(arguments, name) is not None}
    if not sizes:
        raise UserError("no size is given: --model.hidden_size, --model.ffn_hidden_size, --model.layout and so on")
    if any(isinstance(size, int) and size < 1 for size in sizes.values()):
        raise UserError("sizes are positive numbers")
    if (arguments.blend is None) != (arguments.alpha is None):
        raise UserError("--blend and --alpha go together: a model of the new sizes, and the share of the resized one")
    from pipeline.initialisation.growth.grow import Growth
    from pipeline.initialisation.growth.resize import resize

    growth = Growth(method=arguments.growth, depth=arguments.depth, seed=arguments.seed)
    alpha = 1.0 if arguments.alpha is None else arguments.alpha
    for line in resize(arguments.source, arguments.output, sizes, growth, arguments.blend, alpha):
        print(line)
    print(f"{arguments.output} loads with transformers, and --init.from_huggingface takes it")

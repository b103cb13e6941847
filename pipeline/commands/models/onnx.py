"""``narrowbert onnx``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, UserError, path_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Write the files and print how far they are from torch and, for int8, what they gain and lose."""
    parser = Parser("narrowbert onnx", description=COMMANDS["onnx"])
    parser.add_argument(
        "model", type=path_argument, metavar="MODEL_DIR", help="the files are written to MODEL_DIR/onnx/"
    )
    parser.add_argument(
        "--int8",
        type=path_argument,
        metavar="TEXTS",
        help="also int8 files, measured on this file of one text per line",
    )
    arguments = parser.parse_args(argv)
    from pipeline.export.onnx_files import write_onnx

    if arguments.int8 is not None:
        from pipeline.export.int8_files import read_texts

        if not arguments.int8.is_file():
            raise UserError(
                f"--int8 {arguments.int8}: there is no such file; give one text per line, to measure int8 on"
            )
        read_texts(arguments.model, arguments.int8)
    written = write_onnx(arguments.model)
    for path, difference in written:
        print(f"{path}: at most {difference:.1e} from torch")
    if arguments.int8 is None:
        return
    from pipeline.export.int8_files import write_int8

    for compared in write_int8(arguments.model, [path for path, _ in written], arguments.int8):
        before, after = compared.megabytes
        print(
            f"{compared.path}: {after:.1f} MB (fp32 {before:.1f} MB), {compared.speed:.2f}x the speed of fp32 "
            f"on this machine, {compared.quality}"
        )

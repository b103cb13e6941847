"""``narrowbert export``."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import Parser, path_argument, refuse_old_options
from pipeline.commands import COMMANDS

OLD_OPTIONS = {
    "--from": "narrowbert convert MODEL_DIR --output DIR",
    "--layout": "narrowbert convert MODEL_DIR --layout LAYOUT",
    "--tokenizer": "narrowbert convert MODEL_DIR --tokenizer FILE",
    "--allow": "narrowbert convert MODEL_DIR --allow NAME",
    "--onnx": "narrowbert onnx MODEL_DIR",
    "--int8": "narrowbert onnx MODEL_DIR --int8 TEXTS",
}


def run(argv: Sequence[str]) -> None:
    """Write the folder, and register it in MLflow where asked to."""
    refuse_old_options(argv, OLD_OPTIONS)
    parser = Parser("narrowbert export", description=COMMANDS["export"])
    parser.add_argument("run_dir", type=path_argument, metavar="RUN_DIR")
    parser.add_argument("--output", type=path_argument, required=True, help="new folder to write")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="how sentence-transformers makes embeddings")
    parser.add_argument("--register", metavar="NAME", help="also make it a new version of this model in MLflow")
    arguments = parser.parse_args(argv)
    from pipeline.export.from_run import export_run

    if arguments.register is not None:
        from pipeline.export.register import check_model_name
        from pipeline.tracking.mlflow_client import connect_to_run

        check_model_name(arguments.register)
        connect_to_run(arguments.run_dir)  # refused before the export is written, not after
    export_run(arguments.run_dir, arguments.output, arguments.pooling)
    print(how_to_load(arguments.output))
    if arguments.register is not None:
        from pipeline.export.register import register_export

        address = register_export(arguments.run_dir, arguments.output, arguments.register)
        print(f"MLflow has it as {address}: mlflow.pyfunc.load_model('{address}')")


def how_to_load(folder: Path) -> str:
    """What to do with the folder that was written."""
    return f"{folder} loads with transformers: AutoModelForMaskedLM.from_pretrained(..., trust_remote_code=True)"

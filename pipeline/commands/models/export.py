"""``narrowbert export``."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_prep.contract.command_line import Parser, UserError, path_argument, refuse_old_options
from pipeline.commands import COMMANDS

MODEL_TYPES = ("narrowbert", "bert", "modernbert")
MODEL_TYPE_HELP = "class to write; those of transformers itself need no remote code, and no layer right of ':'"
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
    parser.add_argument("run", type=path_argument, metavar="RUN", help="RUN_DIR, or RUN_DIR@STEP")
    parser.add_argument("--output", type=path_argument, required=True, help="new folder to write")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="how sentence-transformers makes embeddings")
    parser.add_argument("--model_type", choices=MODEL_TYPES, default=MODEL_TYPES[0], help=MODEL_TYPE_HELP)
    parser.add_argument("--encoder_only", action="store_true", help="leave out what is right of ':', and the head")
    parser.add_argument("--revisions", action="store_true", help="every checkpoint, as a tag of a git repository")
    parser.add_argument("--register", metavar="NAME", help="also make it a new version of this model in MLflow")
    arguments = parser.parse_args(argv)
    from pipeline.export.from_run import export_run
    from pipeline.runs.ancestry import split_source

    run_dir, step = split_source(str(arguments.run))
    if arguments.revisions and (step is not None or arguments.register is not None):
        raise UserError("--revisions takes every checkpoint of RUN_DIR: give it without @STEP and --register")
    if arguments.register is not None:
        if arguments.encoder_only:
            raise UserError("--register takes a model that fills masks: leave out --encoder_only")
        if arguments.model_type != MODEL_TYPES[0]:
            raise UserError(f"--register takes no {arguments.model_type}: export the model twice, once for MLflow")
        from pipeline.export.register import check_model_name
        from pipeline.tracking.mlflow_client import connect_to_run

        check_model_name(arguments.register)
        connect_to_run(run_dir)  # refused before the export is written, not after
    if arguments.revisions:
        from pipeline.export.revisions import export_revisions

        remarks = export_revisions(
            run_dir, arguments.output, arguments.pooling, arguments.model_type, encoder_only=arguments.encoder_only
        )
    else:
        remarks = export_run(
            run_dir, arguments.output, arguments.pooling, arguments.model_type, step,
            encoder_only=arguments.encoder_only,
        )  # fmt: skip
    for line in [*remarks, how_to_load(arguments.output, arguments.model_type)]:
        print(line)
    if arguments.register is not None:
        from pipeline.export.register import register_export

        address = register_export(run_dir, arguments.output, arguments.register)
        print(f"MLflow has it as {address}: mlflow.pyfunc.load_model('{address}')")


def how_to_load(folder: Path, model_type: str) -> str:
    """What to do with the folder that was written."""
    (architecture,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if model_type == MODEL_TYPES[0]:
        auto_class = "AutoModelForMaskedLM" if architecture.endswith("MaskedLM") else "AutoModel"
        return f"{folder} loads with transformers: {auto_class}.from_pretrained(..., trust_remote_code=True)"
    return f"{folder} loads with transformers: {architecture}.from_pretrained(...), without remote code"

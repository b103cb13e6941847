"""The ``narrowbert`` command."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from data_prep.contract.command_line import Parser, UserError, choose_command, read_config, run_command
from pipeline.config import RunConfig
from pipeline.finetune.config import FinetuneConfig, check_finetune
from pipeline.planning.plan import PlanOptions, plan
from pipeline.processes.launch import die_with_launcher, start_local_processes
from pipeline.processes.signals import catch_stop_signals
from pipeline.processes.world import SINGLE_PROCESS, world_from_environment
from pipeline.runs.directory import has_checkpoint, is_finished, prepare_run
from pipeline.tracking.description import check_tracking

Part = TypeVar("Part")

COMMANDS = {
    "plan": "what a configuration costs: parameters, FLOPs, speed-up, memory, time; starts nothing",
    "train": "train, or go on training, a run",
    "evaluate": "masked-LM loss and accuracy of a run's newest checkpoint on the validation split",
    "report": "runs side by side; the last is the control",
    "export": "write a run's model, or any BERT or NarrowBERT, as a folder that transformers loads",
    "encode": "embeddings or predictions of lines of text, as JSON lines",
    "finetune": "train an exported model on labelled examples: texts, pairs, tags, answers",
    "checkpoints": "a run's checkpoints, every file verified",
    "sync": "send metrics that MLflow has not got yet",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(RunConfig):
    """A run and how many processes to start for it."""

    processes: int | None = None
    """Processes to start on this machine (default 1); under torchrun or srun this process joins those instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanArguments(RunConfig, PlanOptions):
    """A run and what to plan it for."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command("narrowbert", _dispatch, sys.argv[1:]))


def _dispatch(argv: Sequence[str]) -> int | None:
    command = choose_command("narrowbert", "Pretrain NarrowBERT and use the result.", COMMANDS, argv)
    return {
        "plan": _plan,
        "train": _train,
        "evaluate": _evaluate,
        "report": _report,
        "export": _export,
        "encode": _encode,
        "finetune": _finetune,
        "checkpoints": _checkpoints,
        "sync": _sync,
    }[command](argv[1:])


def _plan(argv: Sequence[str]) -> None:
    arguments = read_config(PlanArguments, argv, "narrowbert plan", COMMANDS["plan"])
    print(plan(_part(RunConfig, arguments), _part(PlanOptions, arguments)))


def _train(argv: Sequence[str]) -> int:
    die_with_launcher()
    catch_stop_signals()
    arguments = read_config(TrainArguments, argv, "narrowbert train", COMMANDS["train"])
    config = _part(RunConfig, arguments)
    joined = world_from_environment()
    processes = 1 if arguments.processes is None else arguments.processes
    # Here, before anything heavy is imported or started: a mistake is one quick line.
    check_tracking(config.tracking)
    shards = prepare_run(config, joined.size if joined else processes)
    if is_finished(config):
        if joined is None or joined.rank == 0:
            print(f"{config.run_dir} is finished: nothing to do")
        return 0
    if config.init.from_huggingface is not None and not has_checkpoint(config):
        from pipeline.initialisation.load import check_init

        check_init(config, shards)
    if joined is None and processes > 1:
        return start_local_processes(
            processes, ["train", *argv, *(["--debug"] if "--debug" in sys.argv else [])], Path(config.run_dir) / "logs"
        )
    from pipeline.training.loop import train

    return train(config, joined or SINGLE_PROCESS, shards)


def _evaluate(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert evaluate", description=COMMANDS["evaluate"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--max_rows", type=int, default=None, help="validation rows to read (default: all)")
    arguments = parser.parse_args(argv)
    from pipeline.training.validation import evaluate_run

    print(evaluate_run(arguments.run_dir, arguments.max_rows))


def _report(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert report", description=COMMANDS["report"])
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--output", type=Path, help="also write the comparison as one HTML page, with its curves")
    parser.add_argument("--to_mlflow", action="store_true", help="add that page to the MLflow run of each RUN_DIR")
    arguments = parser.parse_args(argv)
    if arguments.to_mlflow and arguments.output is None:
        raise UserError("--to_mlflow needs the page: give --output FILE.html as well")
    from pipeline.reports.comparison import report, write_report

    print(report(arguments.run_dirs))
    if arguments.output is None:
        return
    write_report(arguments.run_dirs, arguments.output)
    print(f"curves: {arguments.output}")
    if arguments.to_mlflow:
        from pipeline.tracking.mlflow_client import log_file

        for run_dir in arguments.run_dirs:
            log_file(run_dir, arguments.output, "reports")


def _export(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert export", description=COMMANDS["export"])
    parser.add_argument("run_dir", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, help="new folder to write")
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="alone: write DIR/onnx/ of an exported or tuned model")
    parser.add_argument(
        "--int8", type=Path, metavar="TEXTS", help="with --onnx: also int8 files, measured on a file of a text a line"
    )
    parser.add_argument("--register", metavar="NAME", help="also make it a new version of this model in MLflow")
    parser.add_argument(
        "--pooling", choices=["cls", "mean"], help="how sentence-transformers makes embeddings of texts"
    )
    elsewhere = parser.add_argument_group("instead of a run")
    elsewhere.add_argument("--from", type=Path, metavar="DIR", dest="source", help="BERT or NarrowBERT of transformers")
    elsewhere.add_argument("--layout", help="layout of the export (default: that of DIR)")
    elsewhere.add_argument("--tokenizer", type=Path, help="tokenizer.json of the model (default: DIR/tokenizer.json)")
    elsewhere.add_argument("--allow", nargs="+", default=[], metavar="NAME", help="tensors to leave out: bert.pooler.*")
    arguments = parser.parse_args(argv)
    if arguments.onnx is not None:
        if arguments.run_dir or arguments.source or arguments.output:
            parser.error("--onnx DIR stands alone: export first, then give that folder")
        _export_onnx(arguments.onnx, arguments.int8)
        return
    if arguments.int8 is not None:
        parser.error("--int8 belongs to --onnx DIR")
    if arguments.output is None:
        parser.error("no folder to write: give --output")
    if (arguments.run_dir is None) == (arguments.source is None):
        parser.error("give a run directory or --from DIR, one of the two")
    if arguments.source is not None and arguments.register is not None:
        parser.error("--register belongs to a run: what comes from elsewhere has none in MLflow")
    if arguments.source is None and (arguments.layout or arguments.tokenizer or arguments.allow):
        parser.error("--layout, --tokenizer and --allow belong to --from: a run knows its own")
    from pipeline.export.run import export_run
    from pipeline.initialisation.pretrained import export_pretrained

    if arguments.register is not None:
        from pipeline.tracking.mlflow_client import connect_to_run

        connect_to_run(arguments.run_dir)  # refused before the export is written, not after
    if arguments.source is None:
        export_run(arguments.run_dir, arguments.output, arguments.pooling)
    else:
        lines = export_pretrained(
            arguments.source,
            arguments.output,
            layout=arguments.layout,
            tokenizer_path=arguments.tokenizer,
            allow=arguments.allow,
            pooling=arguments.pooling,
        )
        for line in lines:
            print(line)
    print(
        f"{arguments.output} loads with transformers: AutoModelForMaskedLM.from_pretrained(..., trust_remote_code=True)"
    )
    if arguments.register is not None:
        from pipeline.export.register import register_export

        address = register_export(arguments.run_dir, arguments.output, arguments.register)
        print(f"MLflow has it as {address}: mlflow.pyfunc.load_model('{address}')")


def _export_onnx(folder: Path, texts: Path | None) -> None:
    from pipeline.export.onnx_files import write_onnx

    if texts is not None and not texts.is_file():
        raise UserError(f"--int8 {texts}: there is no such file; give a text a line, to measure what int8 costs")
    written = write_onnx(folder)
    for path, difference in written:
        print(f"{path}: at most {difference:.1e} from torch")
    if texts is not None:
        from pipeline.export.int8_files import write_int8

        for compared in write_int8(folder, [path for path, _ in written], texts):
            before, after = compared.megabytes
            print(
                f"{compared.path}: {after:.1f} MB (fp32 {before:.1f} MB), {compared.speed:.2f}x the speed of fp32 "
                f"on this machine, {compared.quality}"
            )


def _encode(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert encode", description=f"{COMMANDS['encode']}, in their order. Too long texts are cut.")
    parser.add_argument("--model", type=Path, required=True, help="exported or fine-tuned folder")
    parser.add_argument("--pooling", choices=["cls", "mean"], help="embeddings (default: predictions if there are any)")
    parser.add_argument("--pairs", action="store_true", help="a line is two texts with a tab between them")
    parser.add_argument("--max_length", type=int, help="tokens of a text (default: what the model can read)")
    parser.add_argument("--batch_tokens", type=int, default=8192, help="tokens of a batch, with padding")
    parser.add_argument("--window", type=int, default=2048, help="lines that are sorted by length at a time")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    arguments = parser.parse_args(argv)
    from pipeline.inference.encode import EncodeOptions, encode

    cut = encode(_part(EncodeOptions, arguments), sys.stdin.buffer, sys.stdout)
    if cut:
        print(f"{cut} texts were longer than the model reads and were cut", file=sys.stderr)


def _finetune(argv: Sequence[str]) -> None:
    config = read_config(FinetuneConfig, argv, "narrowbert finetune", COMMANDS["finetune"])
    check_finetune(config)
    from pipeline.finetune.run import finetune

    print(finetune(config))


def _checkpoints(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert checkpoints", description=COMMANDS["checkpoints"])
    parser.add_argument("run_dir", type=Path)
    arguments = parser.parse_args(argv)
    from pipeline.checkpoints.listing import list_checkpoints

    print(list_checkpoints(arguments.run_dir))


def _sync(argv: Sequence[str]) -> None:
    parser = Parser("narrowbert sync", description=COMMANDS["sync"])
    parser.add_argument("run_dir", type=Path)
    from pipeline.tracking.shipping import sync

    run_dir = parser.parse_args(argv).run_dir
    sync(run_dir)
    print(f"everything of {run_dir} is in MLflow")


def _part(cls: type[Part], arguments: object) -> Part:
    """The fields of ``arguments`` that belong to ``cls``."""
    return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

"""``narrowbert report``."""

from collections.abc import Sequence

from data_prep.contract.command_line import Parser, UserError, path_argument
from pipeline.commands import COMMANDS


def run(argv: Sequence[str]) -> None:
    """Print the comparison; write it as a page, and send the page to MLflow, where asked to."""
    parser = Parser("narrowbert report", description=COMMANDS["report"])
    parser.add_argument("run_dirs", type=path_argument, nargs="+", metavar="RUN_DIR")
    parser.add_argument(
        "--output", type=path_argument, help="also write the comparison as one HTML page, with its curves"
    )
    parser.add_argument("--to_mlflow", action="store_true", help="add that page to the MLflow run of each RUN_DIR")
    arguments = parser.parse_args(argv)
    if arguments.to_mlflow and arguments.output is None:
        raise UserError("--to_mlflow needs the page: give --output FILE.html as well")
    from pipeline.reports.comparison import report, write_report

    if arguments.to_mlflow:
        from pipeline.tracking.mlflow_client import connect_to_run

        for run_dir in arguments.run_dirs:
            connect_to_run(run_dir)  # refused before the page is written, not after
    print(report(arguments.run_dirs))
    if arguments.output is None:
        return
    write_report(arguments.run_dirs, arguments.output)
    print(f"curves: {arguments.output}")
    if arguments.to_mlflow:
        from pipeline.tracking.mlflow_client import log_file

        for run_dir in arguments.run_dirs:
            log_file(run_dir, arguments.output, "reports")

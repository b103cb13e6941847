"""An exported model in MLflow's registry, on the MLflow run that trained it."""

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.contract.command_line import UserError
from pipeline.tracking.mlflow_client import connect_to_run, mlflow_for_users

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PACKAGES = ("mlflow", "torch", "transformers", "tokenizers", "safetensors")
_EXAMPLE = "the {} of this sentence is hidden ."


def check_model_name(name: str) -> None:
    """Raise UserError where MLflow's registry would refuse a name, after all the work."""
    if not name.strip() or name in (".", "..") or any(letter in name for letter in "/:"):
        raise UserError(f"--register {name!r} is no name of a model: it cannot be empty nor have '/' or ':' in it")


def register_export(run_dir: Path, export_dir: Path, name: str) -> str:
    """Log an exported model to its run in MLflow and register it as a new version of ``name``.

    It loads with ``mlflow.pyfunc.load_model("models:/NAME/VERSION")``, see `pyfunc_narrowbert.py`. MLflow
    gets code as a file and weights as safetensors: nothing is pickled.

    Returns:
        The address of the new version, ``models:/NAME/VERSION``.

    Raises:
        UserError: MLflow cannot be reached, or does not have the run.
    """
    store, run_id = connect_to_run(run_dir)
    import mlflow
    from mlflow.models import Model

    with mlflow_for_users():
        mlflow.set_tracking_uri(store)
        mlflow.set_registry_uri(store)
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            registered_model_name=name,
            python_model=str(Path(__file__).with_name("pyfunc_narrowbert.py")),
            artifacts={"model": str(export_dir.resolve())},
            signature=pyfunc_signature(),
            input_example=[_EXAMPLE.format(_mask_token(export_dir))],
            pip_requirements=[f"{package}=={_public_version(package)}" for package in _PACKAGES],
        )
    return f"models:/{name}/{info.registered_model_version}"


def _mask_token(export_dir: Path) -> str:
    return json.loads((export_dir / "tokenizer_config.json").read_text(encoding="utf-8"))["mask_token"]


def pyfunc_signature() -> "ModelSignature":
    """What `pyfunc_narrowbert.py` takes: texts, and the parameters ``task`` and ``top_k``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("task", DataType.string, "fill-mask"), ParamSpec("top_k", DataType.integer, 5)]),
    )


def _public_version(package: str) -> str:
    # Without "+cpu": a server that loads the model takes the build for its own machine.
    return importlib.metadata.version(package).split("+")[0]

"""Real runs, looked at: the report and MLflow's page in a browser, the registered model through pyfunc."""

import json
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from pipeline.runs.metric_names import METRICS
from tests.processes import TINY_RUN, run_command, user_error
from tests.tracking.browser import browser, chromium_binary
from tests.tracking.servers import MlflowServer, spooled_points, stored_points

needs_chromium = pytest.mark.skipif(
    chromium_binary() is None, reason="Chromium is not installed (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, shard_folder: Path, empty_store: Path) -> Path:
    """A folder with a NarrowBERT and its control, trained and tracked on the default store, exported, registered."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    for name, layout in (("narrow", "sf:2sf"), ("control", "3sf")):
        run_command(
            "pipeline", "train", *TINY_RUN, "--tracking.enabled", "true", "--data.path", str(shard_folder),
            "--training.eval_interval", "2", "--model.layout", layout, "--run_dir", name, cwd=folder,
        )  # fmt: skip
    run_command("pipeline", "report", "narrow", "control", "--output", "page.html", "--to_mlflow", cwd=folder)
    run_command("pipeline", "export", "narrow", "--output", "model", "--register", "tiny", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def store_server(workplace: Path) -> Iterator[MlflowServer]:
    """A server over the store that the runs are in."""
    server = MlflowServer(workplace, f"sqlite:///{workplace / 'mlflow.db'}")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def run_row(workplace: Path, name: str) -> tuple[str, int, str]:
    """(run id, experiment id, artifact folder) of a run."""
    with sqlite3.connect(workplace / "mlflow.db") as store:
        query = "select run_uuid, experiment_id, artifact_uri from runs where name = ?"
        return store.execute(query, [name]).fetchone()


@pytest.mark.slow
def test_every_metric_has_its_meaning_and_arrives(workplace: Path) -> None:
    store = f"sqlite:///{workplace / 'mlflow.db'}"
    for name in ("narrow", "control"):
        points = spooled_points(workplace / name)
        assert stored_points(store, name) == points
        keys = {key for key, *_ in points}
        # The rest needs another objective, several shard folders, a GPU, a known peak, fp16 or several ranks.
        others = {
            "objective/NAME",
            "train/source_epoch/N",
            "train/mfu",
            "train/loss_scale",
            "train/straggler_ratio",
            "system/gpu_memory_bytes",
        }
        assert keys == METRICS.keys() - others
    by_step = {step: value for key, step, _, value in spooled_points(workplace / "narrow") if key == "train/rows"}
    assert by_step == {0: "0.0", **{step: repr(16.0 * step) for step in range(1, 11)}}


@pytest.mark.slow
def test_mlflow_has_parameters_dataset_environment_and_artifacts(workplace: Path) -> None:
    run_id, _, artifact_uri = run_row(workplace, "narrow")
    record = json.loads((workplace / "narrow/run.json").read_text())
    with sqlite3.connect(workplace / "mlflow.db") as store:
        params = dict(store.execute("select key, value from params where run_uuid = ?", [run_id]).fetchall())
        tags = dict(store.execute("select key, value from tags where run_uuid = ?", [run_id]).fetchall())
        status, start, end = store.execute(
            "select status, start_time, end_time from runs where run_uuid = ?", [run_id]
        ).fetchone()
        inputs = (
            "select digest, input_tags.value from datasets join inputs on source_id = dataset_uuid "
            "join input_tags using (input_uuid) where input_tags.name = 'root_hash' and destination_id = ?"
        )
        ((digest, root_hash),) = store.execute(inputs, [run_id]).fetchall()
    assert root_hash == record["data"]["root_hash"] == params["shards.root_hash"]
    assert root_hash.startswith(digest)
    assert params["model.layout"] == "sf:2sf"
    assert params["num_parameters"].isdigit()
    assert tags["narrowbert.lineage"] == record["lineage_id"]
    assert tags["narrowbert.hosts"] == os.uname().nodename
    assert status == "FINISHED"  # registering the model afterwards does not open the run again
    times = [at for _, _, at, _ in spooled_points(workplace / "narrow")]
    assert start <= min(times) <= max(times) <= end + 1
    artifacts = Path(artifact_uri.removeprefix("file://"))
    found = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert found == {
        "config.yaml", "run.json", "events.jsonl", "report.html", "environment/attempt-1.json", "reports/page.html",
        "data/report.html",
        *(f"checkpoints/step-{step:08d}/{name}" for step in (4, 8, 10) for name in ("manifest.json", "trainer.json")),
    }  # fmt: skip
    environment = json.loads((artifacts / "environment/attempt-1.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__


@pytest.mark.slow
@needs_chromium
def test_the_report_shows_names_and_curves(workplace: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.open((workplace / "page.html").as_uri())
        tab.wait_for("document.readyState == 'complete' && location.protocol == 'file:'")
        text = tab.text()
        points = tab.evaluate(
            "[...document.querySelectorAll('figure')].map(f => [f.querySelector('h3').textContent,"
            " [...f.querySelectorAll('polyline')].map(p => [p.dataset.name, JSON.parse(p.dataset.at).length])])"
        )
        boxes = tab.evaluate(
            "[...document.querySelectorAll('polyline')].every(p => p.getBoundingClientRect().width > 50)"
        )
        requests = tab.evaluate("performance.getEntriesByType('resource').length")
        tab.screenshot(workplace / "report.png")
    assert boxes
    assert requests == 0  # self-contained
    for part in ("narrow", "control", "sf:2sf", "Differences of configuration", "model.layout", "start 1, 1 processes"):
        assert part in text
    charts = {heading: dict(curves) for heading, curves in points}
    evaluations = {"narrow": 6, "control": 6}  # steps 0, 2, ... 10
    for axis in ("steps", "tokens", "training time"):
        assert charts[f"Validation loss, by {axis}"] == evaluations
    for heading in ("Training loss, by steps", "Learning rate", "Gradient norm", "Throughput, tokens/s"):
        assert charts[heading] == {"narrow": 10, "control": 10}


@pytest.mark.slow
@needs_chromium
def test_mlflows_page_shows_names_and_curves(workplace: Path, store_server: MlflowServer, tmp_path: Path) -> None:
    run_id, experiment_id, _ = run_row(workplace, "narrow")
    with browser(tmp_path / "profile") as tab:
        page = f"{store_server.url}/#/experiments/{experiment_id}/runs/{run_id}"
        tab.open(f"{page}/model-metrics")
        tab.wait_for("document.querySelectorAll('.js-plotly-plot .js-line').length >= 6")
        text = tab.text()
        tab.screenshot(workplace / "mlflow.png")
        drawn = tab.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot .js-line')].every(l => l.getAttribute('d').length > 10)"
        )
        assert drawn
        for metric in ("train/loss", "train/learning_rate", "train/gradient_norm", "checkpoint/blocking_seconds"):
            assert f"narrow ({metric})" in text  # the legend of its chart
        tab.open(page)
        tab.wait_for("(document.body?.innerText ?? '').includes('model.layout')")
        text = tab.text()
        for part in ("sf:2sf", "validation/loss", "shards", "narrowbert.lineage"):
            assert part in text


@pytest.mark.slow
def test_registered_model_fills_masks_and_embeds(workplace: Path, store_server: MlflowServer) -> None:
    import mlflow

    mlflow.set_tracking_uri(store_server.url)
    mlflow.set_registry_uri(store_server.url)
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    assert model.metadata.signature is not None
    assert model.metadata.signature.params is not None
    assert model.input_example is not None
    texts = ["the model reads a [MASK] of tokens and [MASK] every word", "narrow layers [MASK]"]
    filled = model.predict(texts, params={"top_k": 3})
    expected = pipeline("fill-mask", model=str(workplace / "model"), trust_remote_code=True, top_k=3)(texts)
    assert [len(answer) for answer in filled] == [2, 1]
    for mine, theirs in zip([*filled[0], *filled[1]], [*expected[0], expected[1]], strict=True):
        assert [guess["score"] for guess in mine] == pytest.approx([guess["score"] for guess in theirs], rel=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(workplace / "model")
    encoder = AutoModel.from_pretrained(workplace / "model", trust_remote_code=True).eval()
    vectors = model.predict(texts, params={"task": "embeddings"})
    for text, vector in zip(texts, vectors, strict=True):  # one by one: without padding
        with torch.no_grad():
            alone = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx(alone.tolist(), abs=1e-4)
    assert math.dist(*vectors) > 0.01
    with pytest.raises(Exception, match="unknown task"):
        model.predict(texts, params={"task": "translation"})


@pytest.mark.slow
def test_what_cannot_be_registered_or_logged_is_one_line(workplace: Path, tmp_path: Path) -> None:
    export = ["export", "narrow", "--output", str(tmp_path / "model"), "--register", "tiny"]
    line = user_error("pipeline", *export, cwd=workplace, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "MLflow cannot be reached" in line
    assert not (tmp_path / "model").exists()
    line = user_error("pipeline", *export, cwd=workplace, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'other.db'}")
    assert "send it first with narrowbert sync narrow" in line
    line = user_error("pipeline", "report", "narrow", "--to_mlflow", cwd=workplace)
    assert "--output" in line
    page = ["report", "narrow", "--to_mlflow", "--output", str(tmp_path / "page.html")]
    line = user_error("pipeline", *page, cwd=workplace, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'other.db'}")
    assert "send it first with narrowbert sync narrow" in line
    assert not (tmp_path / "page.html").exists()
    line = user_error("pipeline", "train", *TINY_RUN, "--tracking.enabled", "true", MLFLOW_TRACKING_URI="mlruns")
    assert "MLFLOW_TRACKING_URI begins with 'mlruns'" in line

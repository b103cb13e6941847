"""Comparisons of runs, from hand-made run directories whose figures are known."""

import json
from pathlib import Path

import pytest

from data_prep.contract.command_line import UserError, config_as_dict
from data_prep.contract.html_page import number
from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.reports.comparison import report, write_report
from pipeline.reports.curves import curve_of, drawn
from pipeline.reports.history import read_history
from pipeline.reports.svg_chart import Line, line_chart, ticks
from tests.processes import TINY_RUN, run_command


def write_run(
    folder: Path, layout: str, *, starts: list[int], losses: list[tuple[int, int, float]], rate: float = 1000.0
) -> Path:
    """A run directory: starts in seconds, losses as (second, step, validation loss)."""
    folder.mkdir()
    config = RunConfig(run_dir=str(folder), model=ModelConfig(layout=layout), training=TrainingConfig())
    (folder / "config.yaml").write_text(json.dumps(config_as_dict(config)))
    data = {"seq_length": 512, "masked_per_row": 77, "vocab_size": 30522, "root_hash": "a", "path": "x"}
    (folder / "run.json").write_text(json.dumps({"lineage_id": "a", "attempt": 1, "data": data, "arithmetic": []}))
    events = [{"timestamp_ms": s * 1000, "kind": "start", "step": 0, "text": "start", "hosts": ["h"]} for s in starts]
    events.append({"timestamp_ms": 1000 * starts[-1] + 1, "kind": "not deterministic", "step": 3, "text": "<differs>"})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    points = []
    for second, step, loss in losses:
        metrics = {"validation/loss": loss, "validation/masked_accuracy": 0.5, "train/tokens_per_second": rate}
        points.append({"step": step, "timestamp_ms": second * 1000, "metrics": metrics | {"train/loss": loss}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return folder


def test_training_time_leaves_out_the_gaps_between_starts(tmp_path: Path) -> None:
    losses = [(10, 0, 9.0), (30, 10, 8.0), (1010, 20, 7.0), (1030, 30, 6.0)]
    run = read_history(write_run(tmp_path / "a", "2sf:10sf", starts=[0, 1000], losses=losses))
    assert run.attempts == [(0, 30_000), (1_000_000, 1_030_000)]
    curve = curve_of(run, "a")
    assert [seconds for seconds, _ in curve.series("validation/loss", "training time")] == [10.0, 30.0, 40.0, 60.0]
    assert curve.seconds_to_loss(7.5) == pytest.approx(35.0)
    assert curve.seconds_to_loss(6.0) == pytest.approx(60.0)
    assert curve.seconds_to_loss(5.9) is None


def test_page_and_table_compare_with_the_last_run(tmp_path: Path) -> None:
    narrow = write_run(
        tmp_path / "narrow", "2sf:10sf", starts=[0], losses=[(0, 0, 9.0), (50, 10, 5.0), (100, 20, 4.0)], rate=2000.0
    )
    control = write_run(tmp_path / "control", "12sf", starts=[0], losses=[(0, 0, 9.0), (200, 20, 5.0)])
    table = report([narrow, control]).splitlines()
    assert table[2].split()[-2:] == ["2.00x", "2.38x"]
    write_report([narrow, control], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for part in (
        "50 s to 5.000 (4.00x)", "2.00x of 2.38x", "model.layout", "2sf:10sf", "step 3: not deterministic",
        "&lt;differs&gt;", "Differences of configuration", "start on h",
    ):  # fmt: skip
        assert part in page, part
    assert "<differs>" not in page
    assert "model.hidden_size" not in page  # the same in both
    for outside in ("http://", "https://", "src=", "@import"):
        assert outside not in page


def phase(folder: Path, parent: Path, step: int, steps: int, *, losses: list[tuple[int, int, float]]) -> Path:
    """A run that began at ``step`` of ``parent``, with so many steps before it."""
    write_run(folder, "2sf:10sf", starts=[losses[0][0]], losses=losses)
    of_parent = json.loads((parent / "run.json").read_text())
    record = json.loads((folder / "run.json").read_text()) | {
        "lineage_id": folder.name,
        "parent": {
            "lineage_id": of_parent["lineage_id"], "run": parent.name, "path": str(parent), "step": step,
            "sha256": "x", "moments": True, "first_row": 0, "steps": steps, "rows": 0, "tokens": steps * 100,
        },
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_phases_of_one_ancestry_are_one_curve(tmp_path: Path) -> None:
    trunk = write_run(
        tmp_path / "trunk", "2sf:10sf", starts=[0], losses=[(0, 0, 9.0), (10, 10, 6.0), (20, 20, 5.5), (30, 30, 5.4)]
    )
    # It began at step 20, and what the trunk did after that is not its own.
    longer = phase(tmp_path / "long", trunk, 20, 20, losses=[(100, 0, 5.6), (140, 5, 5.0)])
    decay = phase(tmp_path / "decay", longer, 5, 25, losses=[(200, 0, 5.0), (240, 4, 4.0)])
    control = write_run(tmp_path / "control", "12sf", starts=[0], losses=[(0, 0, 9.0), (90, 20, 4.5)])
    (control / "run.json").write_text((control / "run.json").read_text().replace('"a"', '"c"'))
    histories = [read_history(folder) for folder in (trunk, longer, decay, control)]
    curve = curve_of(histories[2], "decay", histories)
    assert curve.name == "trunk > long > decay"
    steps = curve.series("validation/loss", "steps")
    assert steps == [(0, 9.0), (10, 6.0), (20, 5.5), (20, 5.6), (25, 5.0), (25, 5.0), (29, 4.0)]
    tokens = histories[2].tokens(4)
    assert [place for place, _ in curve.series("validation/loss", "tokens")][-2:] == [2500, 2500 + tokens]
    times = [place for place, _ in curve.series("validation/loss", "training time")]
    assert times == [0, 10, 20, 20, 60, 60, 100]
    assert curve.seconds() == 100
    assert curve.seconds_to_loss(4.5) == pytest.approx(80.0)
    shown = drawn([curve_of(run, run.name, histories) for run in histories])
    assert [found.name for found in shown] == ["trunk > long > decay", "control"]

    # Named alone, it finds the runs before it where they were; the control stays the control.
    write_report([decay, control], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('data-name="trunk &gt; long &gt; decay"') == page.count('data-name="control"') > 3
    assert "1.33 min to 4.500 (1.12x)" in page
    assert "decay (from step 5 of long)" in page
    assert "25 + 4" in report([decay, control])
    # Without them its curve begins where it began.
    trunk.rename(tmp_path / "elsewhere")
    alone = curve_of(read_history(decay), "decay")
    assert alone.series("validation/loss", "steps")[:2] == [(20, 5.6), (25, 5.0)]


def test_a_run_without_evaluation_still_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "new", "12sf", starts=[5], losses=[])
    write_report([run], tmp_path / "page.html")
    assert "nothing logged" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match="no evaluation yet"):
        report([run])
    with pytest.raises(UserError, match="cannot write"):
        write_report([run], tmp_path / "nowhere/page.html")
    (run / "config.yaml").write_text("model: {layout: 12sf, colour: red}")
    with pytest.raises(UserError, match="another version"):
        read_history(run)


def test_a_chart_leaves_out_what_is_not_finite_and_thins_long_curves() -> None:
    points = [(float(x), float("nan") if x == 500 else float(x)) for x in range(5000)]
    chart = line_chart([Line(name="a & b", style="c0", points=points)], x_label="steps", y_label="loss")
    assert "nan" not in chart
    assert "a &amp; b" in chart
    assert 400 < chart.split('points="')[1].split('"')[0].count(",") <= 500
    assert chart.count("<polyline") == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 9.7), (-4.0, 1e6), (5e-4, 6e-4), (0.0, 3e14)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 * abs(high)
    assert found[-1] >= high - 1e-9 * abs(high)
    assert 4 <= len(found) <= 12
    assert {number(value)[-1].isdigit() or number(value)[-1] in "kMGT" for value in found} == {True}


@pytest.mark.slow
def test_a_folder_in_place_of_a_file_of_the_run_is_one_line(tmp_path: Path, shard_folder: Path) -> None:
    command = ["train", *TINY_RUN, "--run_dir", str(tmp_path / "run"), "--data.path", str(shard_folder)]
    run_command("pipeline", *command, "--training.train_steps", "1", "--training.precision", "fp32")
    events = tmp_path / "run/events.jsonl"
    events.unlink()
    events.mkdir()
    said = run_command("pipeline", "report", str(tmp_path / "run"), expect=2).stderr
    assert said.splitlines() == [
        f"narrowbert: error: {events}: Is a directory; put there what belongs there, or give another path"
    ]

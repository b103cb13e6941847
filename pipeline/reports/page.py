"""The page that compares runs: one HTML file that needs nothing else, not even scripts, to be read."""

import datetime
import math
from collections.abc import Sequence

from data_prep.contract.html_page import duration, escaped, html_page, html_table, number
from pipeline.reports.curves import Curve, curve_of, drawn
from pipeline.reports.history import RunHistory
from pipeline.reports.svg_chart import Line, line_chart

_WIDTH, _ROW = 940, 34

_STYLE = """
:root { --c0: #2a78d6; --c1: #d4570f; --c2: #14855c; --c3: #8c5fd0; --c4: #b3308a; --c5: #7a6200; --control: #6b7178; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #5aa2f5; --c1: #f5853f; --c2: #3fbf8c; --c3: #b08cf0; --c4: #ec6cc0; --c5: #d1ab2c; }
  :root { --control: #9aa3ad; }
}
body { max-width: 1480px; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
p, .note { color: var(--soft); max-width: 75ch; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.nothing { font-style: italic; }
td:first-child { white-space: nowrap; }
.key { display: inline-block; width: 1.1em; height: 3px; vertical-align: middle; margin-right: .4em; }
.grid { stroke: var(--line); } .tick, .label { font-size: 11px; fill: var(--soft); }
.name { font-size: 12px; fill: var(--text); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .curve.control { stroke-dasharray: 5 3; }
.fault { fill: #d1242f; stroke: var(--page); } .gap { fill: var(--line); }
.limit { stroke: var(--text); stroke-width: 2; }
#tip { position: fixed; display: none; background: var(--text); color: var(--page); font-size: 12px;
  padding: .2rem .5rem; border-radius: 4px; pointer-events: none; white-space: pre; }
"""

# A curve's value under the pointer. The page is complete without it.
_SCRIPT = """
const tip = document.getElementById("tip");
for (const svg of document.querySelectorAll("figure svg")) {
  const curves = [...svg.querySelectorAll("[data-at]")].map(c => [c.dataset.name, JSON.parse(c.dataset.at)]);
  svg.addEventListener("mousemove", event => {
    const x = (event.clientX - svg.getBoundingClientRect().left) * svg.viewBox.baseVal.width / svg.clientWidth;
    tip.textContent = curves.map(([name, at]) => {
      const near = at.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      return `${name}: ${near[3]} at ${near[2]}`;
    }).join("\\n");
    tip.style.display = "block";
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = event.clientY + 14 + "px";
  });
  svg.addEventListener("mouseleave", () => { tip.style.display = "none"; });
}
"""


def render_page(runs: Sequence[RunHistory]) -> str:
    """The whole page. With several runs the last one is the control that the others are measured against."""
    names = _unique_names(runs)
    curves = [curve_of(run, name, runs) for run, name in zip(runs, names, strict=True)]
    lines = _lines(curves)
    styles = [next(style for curve, style in lines if curve.has(run)) for run in runs]
    title = " and ".join(names) if len(names) <= 3 else f"{len(names)} runs"
    body = [
        f"<h1>{escaped(title)}</h1>",
        _summary(runs, names, styles, curves),
        "<h2>Loss</h2>",
        "<p>The same validation loss against steps, tokens and training time. Training time leaves out the gaps "
        "between the starts of a run. The distance between two curves along the last axis is what a layout saves. "
        "A run that began at a checkpoint of another run continues that run's curve.</p>",
        _charts(lines, _LOSS_CHARTS),
        "<h2>Speed</h2>",
        _speed_up_bars(runs, names, styles) if len(runs) > 1 else "",
        _charts(lines, _SPEED_CHARTS),
        "<h2>Optimization</h2>",
        _charts(lines, _OPTIMIZATION_CHARTS),
        "<h2>Starts and faults</h2>",
        _time_line(runs, names, styles),
        _event_table(runs, names),
        "<h2>Configuration</h2>" if len(runs) == 1 else "<h2>Differences of configuration</h2>",
        _configuration(runs, names),
    ]
    colours = "".join(
        f".{style} {{ stroke: var(--{style}); }} .end.{style}, rect.{style} {{ fill: var(--{style}); stroke: none; }} "
        f".key.{style} {{ background: var(--{style}); }}\n"
        for style in (*(f"c{index}" for index in range(6)), "control")
    )
    return html_page(
        f"{title} - NarrowBERT runs",
        "\n".join([*body, '<div id="tip"></div>']),
        style=_STYLE + colours,
        script=_SCRIPT,
    )


def _unique_names(runs: Sequence[RunHistory]) -> list[str]:
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names, start=1)]


def _lines(curves: Sequence[Curve]) -> list[tuple[Curve, str]]:
    """The curves that are drawn, and the style of each: the last run has the control's, unless it is part of one."""
    found = drawn(curves)
    styles = [f"c{index % 6}" for index in range(len(found))]
    if len(found) > 1 and found[-1] is curves[-1]:
        styles[-1] = "control"
    return list(zip(found, styles, strict=True))


def _summary(runs: Sequence[RunHistory], names: Sequence[str], styles: Sequence[str], curves: Sequence[Curve]) -> str:
    compared = len(runs) > 1
    header = ["run", "layout", "state", "steps", "validation loss", "masked accuracy", "tokens", "training time"]
    header += ["tokens/s"]
    if compared:
        header += ["speed-up", "limit by arithmetic", "time to the control's last loss"]
    rows = []
    for run, name, style, curve in zip(runs, names, styles, curves, strict=True):
        origin = f" (from step {run.origin['step']:,} of {run.origin['run']})" if run.origin else ""
        cells = [
            f'<span class="key {style}"></span>{escaped(name + origin)}',
            escaped(run.layout),
            _state(run),
            *_figures(run),
        ]
        if compared:
            cells += _against(run, curve, runs[-1], curves[-1])
        rows.append(cells)
    note = "<p>The last run is the control. Tokens/s are medians over a run's logs.</p>" if compared else ""
    return html_table(header, rows, align_numbers=False) + note


def _state(run: RunHistory) -> str:
    return "finished" if run.finished else "not finished"


def _figures(run: RunHistory) -> list[str]:
    losses, accuracies = run.series("validation/loss"), run.series("validation/masked_accuracy")
    steps = run.points[-1].step if run.points else 0
    rate = run.median_rate()
    newest = max((point.timestamp_ms for point in run.points), default=0)
    return [
        f"{steps:,}",
        f"{losses[0][1]:.3f} &rarr; {losses[-1][1]:.3f}" if losses else "-",
        f"{accuracies[-1][1]:.3f}" if accuracies else "-",
        number(run.tokens(steps)),
        duration(run.training_seconds(newest)),
        f"{rate:,.0f}" if rate else "-",
    ]


def _against(run: RunHistory, curve: Curve, control: RunHistory, control_curve: Curve) -> list[str]:
    rate, control_rate = run.median_rate(), control.median_rate()
    limit = f"{run.limit / control.limit:.2f}x"
    speed_up = f"{rate / control_rate:.2f}x" if rate and control_rate else "-"
    losses = control.series("validation/loss")
    if not losses:
        return [speed_up, limit, "-"]
    target = losses[-1][1]
    mine, theirs = curve.seconds_to_loss(target), control_curve.seconds_to_loss(target)
    if mine is None:
        return [speed_up, limit, f"{target:.3f} not reached"]
    share = f" ({theirs / mine:.2f}x)" if theirs and mine else ""
    return [speed_up, limit, f"{duration(mine)} to {target:.3f}{share}"]


# (heading, metric, x axis)
_LOSS_CHARTS = [
    ("Validation loss, by steps", "validation/loss", "steps"),
    ("Validation loss, by tokens", "validation/loss", "tokens"),
    ("Validation loss, by training time", "validation/loss", "training time"),
    ("Training loss, by steps", "train/loss", "steps"),
    ("Validation masked accuracy, by tokens", "validation/masked_accuracy", "tokens"),
    ("Validation perplexity, by steps", "validation/perplexity", "steps"),
]

_SPEED_CHARTS = [
    ("Throughput, tokens/s", "train/tokens_per_second", "steps"),
    ("Model FLOP/s per process, 10^12", "train/model_tflops_per_second", "steps"),
    ("Wait for data, seconds per step", "train/data_wait_seconds", "steps"),
    ("Checkpoints, seconds that training stood still", "checkpoint/blocking_seconds", "steps"),
    ("Memory of rank 0, bytes", "system/process_memory_bytes", "training time"),
]

_OPTIMIZATION_CHARTS = [
    ("Learning rate", "train/learning_rate", "steps"),
    ("Gradient norm", "train/gradient_norm", "steps"),
    ("Skipped steps", "train/skipped_steps", "steps"),
]


def _charts(curves: Sequence[tuple[Curve, str]], charts: Sequence[tuple[str, str, str]]) -> str:
    figures = []
    longest = max(curve.seconds() for curve, _ in curves)
    unit, seconds = next(((u, s) for u, s in (("hours", 3600), ("minutes", 60)) if longest >= 2 * s), ("seconds", 1))
    for heading, metric, axis in charts:
        lines = [
            Line(name=curve.name, style=style, points=_points(curve, metric, axis, seconds)) for curve, style in curves
        ]
        x_label = f"training time, {unit}" if axis == "training time" else axis
        chart = line_chart(lines, x_label=x_label, y_label=heading)
        legend = "".join(
            f'<span class="tick"><span class="key {line.style}"></span>{escaped(line.name)}</span> ' for line in lines
        )
        figures.append(f"<figure><h3>{escaped(heading)}</h3>{chart}<figcaption>{legend}</figcaption></figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def _points(curve: Curve, metric: str, axis: str, unit_seconds: float) -> list[tuple[float, float]]:
    unit = unit_seconds if axis == "training time" else 1
    return [(place / unit, value) for place, value in curve.series(metric, axis)]


def _speed_up_bars(runs: Sequence[RunHistory], names: Sequence[str], styles: Sequence[str]) -> str:
    """Bars of measured speed-up over the control, each with a mark where its arithmetic ends."""
    control = runs[-1]
    ratios = [(run.median_rate() or 0) / (control.median_rate() or math.inf) for run in runs]
    limits = [run.limit / control.limit for run in runs]
    left, unit = 150, (_WIDTH - 290) / max(*ratios, *limits)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(runs)}" role="img" aria-label="speed-up against its limit">']
    for index, (name, style, ratio, limit) in enumerate(zip(names, styles, ratios, limits, strict=True)):
        top, end = index * _ROW + 6, left + limit * unit
        parts.extend(
            (
                f'<text class="name" x="0" y="{top + 15}">{escaped(name)}</text>',
                f'<rect class="{style}" x="{left}" y="{top}" width="{ratio * unit:.1f}" height="22" rx="3"/>',
                f'<line class="limit" x1="{end:.1f}" x2="{end:.1f}" y1="{top - 3}" y2="{top + 25}"/>',
            )
        )
        after = left + max(ratio, limit) * unit + 8
        parts.append(f'<text class="name" x="{after:.1f}" y="{top + 15}">{ratio:.2f}x of {limit:.2f}x</text>')
    note = f"Tokens/s against {names[-1]}; the line is what the arithmetic allows."
    return "".join([*parts, "</svg>"]) + f'<p class="note">{escaped(note)}</p>'


def _time_line(runs: Sequence[RunHistory], names: Sequence[str], styles: Sequence[str]) -> str:
    """One bar a run: its attempts, the gaps between them, and a mark for each fault."""
    span = max((run.attempts[-1][1] - run.attempts[0][0] for run in runs), default=0) or 1
    left, width = 150, _WIDTH - 170
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(runs) + 26}" role="img" aria-label="starts and faults">']
    for index, (run, name, style) in enumerate(zip(runs, names, styles, strict=True)):
        top, origin = index * _ROW + 6, run.attempts[0][0]

        def place(timestamp_ms: float, origin: int = origin) -> float:
            return left + (timestamp_ms - origin) / span * width

        parts.append(f'<text class="name" x="0" y="{top + 15}">{escaped(name)}</text>')
        end = place(run.attempts[-1][1])
        parts.append(f'<rect class="gap" x="{left}" y="{top + 9}" width="{max(end - left, 1):.1f}" height="4"/>')
        for number_, (begin, last) in enumerate(run.attempts, start=1):
            size = max(place(last) - place(begin), 2)
            parts.extend(
                (
                    f'<rect class="{style}" x="{place(begin):.1f}" y="{top}" width="{size:.1f}" height="22" rx="3">',
                    f"<title>start {number_}: {duration((last - begin) / 1000)}</title></rect>",
                )
            )
        for timestamp_ms, text in _faults(run):
            parts.extend(
                (
                    f'<circle class="fault" cx="{place(timestamp_ms):.1f}" cy="{top + 11}" r="5">',
                    f"<title>{escaped(text)}</title></circle>",
                )
            )
    bottom = _ROW * len(runs) + 18
    parts.extend(
        (
            f'<text class="tick" x="{left}" y="{bottom}">first start</text>',
            f'<text class="tick" x="{_WIDTH - 20}" y="{bottom}" text-anchor="end">{duration(span / 1000)} later</text>',
        )
    )
    return "".join([*parts, "</svg>"]) + '<p class="note">Bars: starts of the run. Red: faults.</p>'


def _faults(run: RunHistory) -> list[tuple[int, str]]:
    """(time, what) of everything that is not a start, skipped steps included."""
    faults = [
        (event["timestamp_ms"], f"step {event['step']}: {event['kind']}: {event.get('text', '')}")
        for event in run.events
        if event["kind"] != "start"
    ]
    before = 0.0
    for point in run.points:
        skipped = point.metrics.get("train/skipped_steps", before)
        if skipped > before:
            faults.append((point.timestamp_ms, f"step {point.step}: {skipped - before:.0f} steps skipped"))
        before = skipped
    return sorted(faults)


def _event_table(runs: Sequence[RunHistory], names: Sequence[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        described = [
            (event["timestamp_ms"], f"step {event['step']}: {event.get('text', '')} on {', '.join(hosts)}")
            for event in run.starts()
            if (hosts := event.get("hosts"))
        ]
        for timestamp_ms, text in sorted([*described, *_faults(run)]):
            moment = datetime.datetime.fromtimestamp(timestamp_ms / 1000, tz=datetime.UTC)
            rows.append([name, f"{moment:%Y-%m-%d %H:%M:%S} UTC", text])
    return _plain_table(["run", "when", "what"], rows) if rows else ""


def _configuration(runs: Sequence[RunHistory], names: Sequence[str]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    if len(runs) > 1:
        keys = [key for key in keys if len({str(run.config.get(key)) for run in runs}) > 1]
    rows = [[key, *(str(run.config.get(key, "-")) for run in runs)] for key in keys]
    return _plain_table(["key", *names], rows) if rows else "<p>none</p>"


def _plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[escaped(cell) for cell in row] for row in rows]
    return html_table([escaped(title) for title in header], cells, align_numbers=False)

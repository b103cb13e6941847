"""Fine-tuning of exported models side by side: genre classification, WNUT-17 and WikiGold tagging, three seeds each.

    python benchmarks/finetuning.py labelled --output finetuned control=exports/control narrow=exports/narrow

`labelled` holds `ewt_genre/{train,validation}.jsonl` (`text`, `label`), `wnut17/{train,validation,test}.conll` and
`wikigold/all.conll`, of which every fifth sentence is held out. The first model is what the others are held against.
Each is trained by `narrowbert finetune`; a run that is there already is not done again.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs" / "finetune"


def split_sentences(source: Path, folder: Path) -> None:
    """Every fifth sentence of a .conll file into validation.conll, the others into train.conll."""
    sentences = [block for block in source.read_text(encoding="utf-8").split("\n\n") if block.strip()]
    folder.mkdir(parents=True, exist_ok=True)
    for name, held_out in (("train", False), ("validation", True)):
        chosen = [block for number, block in enumerate(sentences) if (number % 5 == 0) is held_out]
        (folder / f"{name}.conll").write_text("\n\n".join(chosen) + "\n", encoding="utf-8")


def tasks(labelled: Path, output: Path, chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Options of `narrowbert finetune` by task."""
    genre, wnut, wikigold = labelled / "ewt_genre", labelled / "wnut17", output / "wikigold"
    return {
        "genre": [
            "--config", str(CONFIGS / "classification.yaml"), "--data.train", str(genre / "train.jsonl"),
            "--data.validation", str(genre / "validation.jsonl"), "--training.epochs", str(chosen.genre_epochs),
        ],
        "wnut17": [
            "--config", str(CONFIGS / "tagging.yaml"), "--data.train", str(wnut / "train.conll"),
            "--data.validation", str(wnut / "validation.conll"), "--data.test", str(wnut / "test.conll"),
            "--training.epochs", str(chosen.tagging_epochs),
        ],
        "wikigold": [
            "--config", str(CONFIGS / "tagging.yaml"), "--data.train", str(wikigold / "train.conll"),
            "--data.validation", str(wikigold / "validation.conll"), "--training.epochs", str(chosen.tagging_epochs),
        ],
    }  # fmt: skip


def finetune(model: Path, folder: Path, options: list[str], chosen: argparse.Namespace) -> float:
    """Train one model on one task; seconds it took."""
    started = time.perf_counter()
    command = [
        sys.executable, "-m", "pipeline", "finetune", *options, "--model", str(model), "--output", str(folder),
        "--training.learning_rate", str(chosen.learning_rate),
        "--training.seeds", json.dumps(chosen.seeds), "--tracking.enabled", "false",
    ]  # fmt: skip
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stdout[-2000:]}")
    return time.perf_counter() - started


def print_table(models: dict[str, Path], names: list[str], output: Path) -> None:
    first, *others = models
    cells = "".join(f" {name} | difference | within |" for name in others)
    print(f"\n| task, metric | {first} |{cells}\n| --- | --- |" + " --- | --- | --- |" * len(others))
    for task in names:
        records = {name: json.loads((output / f"{name}-{task}" / "results.json").read_text()) for name in models}
        metric = records[first]["primary_metric"]
        for split in sorted({key.split("/")[0] for key in records[first]["mean"]}):
            key = f"{split}/{metric}"
            mean, deviation = (records[first][kind][key] * 100 for kind in ("mean", "deviation"))
            line = f"| {task}, {key} | {mean:.1f} ± {deviation:.1f} |"
            for name in others:
                other, its = (records[name][kind][key] * 100 for kind in ("mean", "deviation"))
                near = mean - other <= max(1.5, deviation)
                line += f" {other:.1f} ± {its:.1f} | {other - mean:+.1f} | {'yes' if near else 'no'} |"
            print(line)
    print(
        "Percent, mean ± deviation over the seeds. within: below by 1.5 points or one deviation of the first at most."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="exported models; the first is the control")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--genre_epochs", type=int, default=3)
    parser.add_argument("--tagging_epochs", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="small models take more than BERT's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time, of one thread each")
    options = parser.parse_args()
    models = {name: Path(folder) for name, _, folder in (model.partition("=") for model in options.models)}
    split_sentences(options.labelled / "wikigold" / "all.conll", options.output / "wikigold")
    work = tasks(options.labelled, options.output, options)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = {
            (name, task): pool.submit(finetune, folder, options.output / f"{name}-{task}", its, options)
            for task, its in work.items()
            for name, folder in models.items()
        }
        for (name, task), future in waiting.items():
            print(f"{name}, {task}: {future.result():.0f} s", flush=True)
    print_table(models, list(work), options.output)


if __name__ == "__main__":
    main()

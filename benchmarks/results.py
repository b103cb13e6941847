"""Results as JSON lines, and the tables of ``benchmarks/README.md`` made from them.

``python benchmarks/results.py`` writes the tables anew. ``results/NAME.jsonl`` has one line per row of a table:
``table``, ``date``, ``machine``, ``commit``, and ``row``, which is column -> what the table shows. ``record`` adds
lines; ``memory.py --record`` calls it. A table shows the lines of its newest measurement: those that agree with the
last line in date, machine and commit.
"""

import datetime
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
_BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_MEASUREMENT = ("date", "machine", "commit")


def record(name: str, table: str, rows: Sequence[Mapping[str, str]], device: str = "") -> None:
    """Append the rows of a measurement that has just been made.

    Args:
        name: of the file, ``results/NAME.jsonl``.
        table: of the table, as the marker in the README names it.
        rows: column -> text, each in the order of the columns.
        device: name of what it was measured on, where that is not the processor.
    """
    root = FOLDER.parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unrecorded"
    facts = {
        "table": table,
        "date": datetime.datetime.now().isoformat(sep=" "),
        "machine": device or machine(),
        "commit": commit,
    }
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**facts, "row": dict(row)}, ensure_ascii=False) + "\n" for row in rows)


def machine() -> str:
    """The processor, as the system names it."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


def markdown(name: str, table: str) -> str:
    """The newest measurement of a table.

    Raises:
        ValueError: nothing was recorded for it.
    """
    lines = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["table"] == table]
    if not lines:
        raise ValueError(f"{name}.jsonl has no table {table}")
    newest = [line["row"] for line in lines if all(line[key] == lines[-1][key] for key in _MEASUREMENT)]
    columns = list(newest[0])
    rows = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in newest)]
    shown = [
        [f" {cell.strip()} " if cell.strip() else " " for cell in row] for row in rows
    ]  # equal headings differ in spaces
    return "".join(f"|{'|'.join(row)}|\n" for row in shown)


def with_tables(text: str) -> str:
    """``text`` with every marked table as it was measured."""
    return _BLOCK.sub(lambda block: block[1] + markdown(block[2], block[3]) + block[4], text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")

"""Document filters: CPU time and verdicts beside datatrove's own filters, on the same documents.

``python benchmarks/filters.py --texts 'my/*.jsonl.gz' --datatrove /path/to/venv/bin/python [--megabytes 200]``

Both run FineWeb's filters in its order, Gopher's repetition and quality rules, C4's and FineWeb's own, each document
through all of them until one drops it, in one process. Documents are pieces of the texts; half of them are spoiled in
ways that the rules look for, differently in each round, so that a small corpus fills any number of megabytes. They are
made as they are used, and verdicts are counted: memory does not grow with ``--megabytes``. ``--datatrove`` names the
Python of an environment with datatrove and spaCy. It runs twice: as it is, and with words and sentences found as here,
which tells whether the rules are the same. ``--record`` adds the table.
"""

import argparse
import glob
import gzip
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.config import PrepConfig
from data_prep.contract.command_line import read_config
from data_prep.corpus.documents import Document, Reject
from data_prep.filters.analysis import WORD
from data_prep.filters.registry import filtered, open_filters

ROOT = Path(__file__).parents[1]
PRESET = ROOT / "configs/prep/filters/fineweb.yaml"
OFF = ("language", "pii")  # datatrove's are another model and another form of replacement

THEIRS = r"""
import json, re, resource, sys, time
import datatrove.utils.text as text
same_words, word = sys.argv[2] == "same", re.compile(sys.argv[3])
if same_words:
    def words(value, language=None):
        return [found.group() for found in word.finditer(value)]
    end = re.compile("[.!?。！？।؟…]+[\"'”’»)\\]}]*(?=\\s+\\S|$)")
    def sentences(value, language=None):
        ends = [found.end() for found in end.finditer(value)]
        rest = value[ends[-1]:] if ends else value
        return [0] * (len(ends) + (not rest.isspace() and rest != ""))
    text.split_into_words, text.split_into_sentences = words, sentences
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
filters = [("gopher_repetition", GopherRepetitionFilter()), ("gopher_quality", GopherQualityFilter()),
           ("c4", C4QualityFilter(filter_no_terminal_punct=False)), ("fineweb", FineWebQualityFilter())]
def judged(content):
    document = Document(text=content, id="x")
    for name, each in filters:
        answer = each.filter(document)
        if answer is not True:
            return name
    return "kept"
judged("The first call loads what they need. " * 20)
seconds = 0.0
with open(sys.argv[1]) as lines:
    for line in lines:
        content = json.loads(line)
        start = time.process_time()
        name = judged(content)
        seconds += time.process_time() - start
        print(name)
print(json.dumps({"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def pieces(patterns: list[str]) -> list[str]:
    """Pieces of some 3,000 characters of all texts."""
    found: list[str] = []
    for path in sorted(Path(path) for pattern in patterns for path in glob.glob(pattern)):  # noqa: PTH207 - absolute too
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
            for line in stream:
                text = json.loads(line)["text"]
                paragraphs = re.split(r"\n+", text)
                piece: list[str] = []
                for paragraph in paragraphs:
                    piece.append(paragraph)
                    if sum(map(len, piece)) > 3_000:
                        found.append("\n".join(piece).strip())
                        piece = []
    return [piece for piece in found if piece]


def spoiled(text: str, draw: random.Random) -> str:
    """The text with a fault that some rule looks for, or nearly."""
    lines = text.split("\n")
    words = text.split()
    some = draw.random()
    match draw.randrange(12):
        case 0:
            return "\n".join([*lines, *draw.choices(lines, k=max(1, int(len(lines) * some)))])
        case 1:
            return "\n".join("- " + line if draw.random() < 0.8 + some / 5 else line for line in lines)
        case 2:
            return " ".join(word + " #" if draw.random() < some / 4 else word for word in words)
        case 3:
            return "\n".join(line + "..." if draw.random() < some else line for line in lines)
        case 4:
            return re.sub(r"[.!?]", lambda found: "" if draw.random() < some else found[0], text)
        case 5:
            return " ".join(words[: int(120 * some)])
        case 6:
            phrase = " ".join(draw.choices(words, k=draw.randint(2, 12)))
            return " ".join([*words, *[phrase] * int(40 * some)])
        case 7:
            return " ".join(str(draw.randrange(10**5)) if draw.random() < some / 2 else word for word in words)
        case 8:
            return "\n".join(draw.sample(words, min(len(words), int(300 * some) + 60)))
        case 9:
            return text.replace(" the ", draw.choice([" {", " lorem ipsum ", " JavaScript ", " [12] "]), 1)
        case 10:
            return "".join(word + ("" if draw.random() < some else " ") for word in words)
        case _:
            return "\n\n".join([text[: int(1 + len(text) * some)]] * 2)


def documents(found: list[str], size: int, seed: int) -> Iterator[str]:
    """Documents of ``size`` characters together."""
    draw = random.Random(seed)
    while size > 0:
        text = found[draw.randrange(len(found))]
        text = spoiled(text, draw).strip() if draw.random() < 0.5 else text
        if text:
            size -= len(text)
            yield text


def ours(texts: Iterator[str], compared: int) -> tuple[Counter[str], float, list[str]]:
    """How many documents each filter drops, CPU seconds, and the filters that drop the first ``compared`` documents."""
    off = [f"--filters.{name}.enabled=false" for name in OFF]
    config = read_config(PrepConfig, ["--config", str(PRESET), "--output", "x", *off], "benchmark", "")
    filters = open_filters(config)
    counts: Counter[str] = Counter()
    first: list[str] = []
    seconds = 0.0
    for text in texts:
        document = Document(id="x", text=text)
        start = time.process_time()
        found = filtered(document, filters, 1)
        seconds += time.process_time() - start
        verdict = found.reason.split(".")[0] if isinstance(found, Reject) else "kept"
        counts[verdict] += 1
        if len(first) < compared:
            first.append(verdict)
    return counts, seconds, first


def theirs(python: str, path: str, words: str) -> tuple[list[str], float, int]:
    """The same of datatrove, and its memory in KiB."""
    command = [python, "-c", THEIRS, path, words, WORD.pattern]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    end = json.loads(lines[-1])
    return lines[:-1], end["seconds"], end["memory"]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="globs of .jsonl or .jsonl.gz with a field text")
    parser.add_argument("--datatrove", help="the Python of an environment with datatrove and spaCy")
    parser.add_argument("--megabytes", type=float, default=20, help="characters that go through our filters")
    parser.add_argument("--compared", type=float, default=5, help="megabytes of them that go through datatrove's")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.datatrove and options.compared > options.megabytes:
        parser.error("--compared is more than --megabytes")
    found = pieces(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        compared = 0
        with path.open("w") as stream:
            for text in documents(found, int(options.compared * 1e6) if options.datatrove else 0, 0):
                stream.write(json.dumps(text) + "\n")
                compared += 1
        counts, seconds, first = ours(documents(found, int(options.megabytes * 1e6), 0), compared)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = [row("narrowbert-prep", options.megabytes, seconds, memory, counts, 1.0)]
        if options.datatrove:
            for name, words in (("datatrove", "own"), ("datatrove, words found as here", "same")):
                other, cost, used = theirs(options.datatrove, str(path), words)
                pairs = Counter((a, b) for a, b in zip(first, other, strict=True) if a != b)
                same = 1 - pairs.total() / compared
                rows.append(row(name, options.compared, cost, used, Counter(other), same))
                print(name, pairs.most_common(8), file=sys.stderr)
    for line in rows:
        print(line)
    if options.record:
        from results import record

        record("filters", "fineweb", rows)


def row(name: str, megabytes: float, seconds: float, memory: int, counts: Counter[str], same: float) -> dict[str, str]:
    """One line of the table."""
    return {
        "filters of FineWeb": name,
        "MB": f"{megabytes:g}",
        "documents": f"{counts.total():,}",
        "CPU s": f"{seconds:.1f}",
        "MB a CPU s": f"{megabytes / seconds:.2f}",
        "kept": f"{counts['kept'] / counts.total():.1%}",
        "same verdict": f"{same:.2%}",
        "memory, MB": f"{memory / 1024:.0f}",
    }


if __name__ == "__main__":
    main()

"""Reading one partition of a large .gz file in a fresh process, with its index and without.

    python benchmarks/large_gzip.py --gigabytes 4 --work /some/disk

Without an index the process decompresses all that stands before the partition. Both take turns at partitions spread
over the file; it prints the seconds of each place, and what making the index costs.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from preparation_memory import write_corpus

PLACES = 5

READ = """
import json, sys, time
from pathlib import Path
from data_prep.config import CleaningConfig, CorpusConfig
from data_prep.corpus.documents import Partition
from data_prep.corpus.files import find_corpus_files
from data_prep.corpus.formats.gzip_index import GzipIndex
from data_prep.corpus.reading import read_partition
path, begin, end, folder, sha256 = sys.argv[1:]
(file,) = find_corpus_files(CorpusConfig(paths=(path,)))
index = GzipIndex(Path(folder), sha256) if folder else None
part = Partition(index=0, file=0, begin=int(begin), end=int(end))
start = time.perf_counter()
found = [item.id for item in read_partition(file, part, CorpusConfig(), CleaningConfig(), index)]
print(json.dumps([time.perf_counter() - start, found]))
"""


def read(path: Path, begin: int, end: int, folder: str, sha256: str) -> tuple[float, list[str]]:
    """(seconds, ids of the documents) of one partition."""
    command = [sys.executable, "-c", READ, str(path), str(begin), str(end), folder, sha256]
    seconds, found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return seconds, found


def main() -> None:
    from data_prep.config import CorpusConfig
    from data_prep.corpus.files import find_corpus_files
    from data_prep.corpus.formats.gzip_index import make_index
    from data_prep.corpus.partitions import plan_partitions
    from data_prep.corpus.surveys import survey

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of text, decompressed")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder to be made, and removed at the end")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    try:
        plain, path = options.work / "text.jsonl", options.work / "text.jsonl.gz"
        write_corpus(plain, int(options.gigabytes * 1e9))
        with plain.open("rb") as source, gzip.open(path, "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        plain.unlink()
        (file,) = find_corpus_files(CorpusConfig(paths=(str(path),)))
        start = time.perf_counter()
        found = survey(file, CorpusConfig())
        surveyed = time.perf_counter()
        assert make_index(file, found, options.work / "indexes")
        indexed = time.perf_counter()
        size = sum(entry.stat().st_size for entry in (options.work / "indexes").iterdir())
        print(f"survey {surveyed - start:.1f} s, index {indexed - surveyed:.1f} s, {size / 1e6:.1f} MB")
        cut = plan_partitions([file], [found])
        for number in range(PLACES):
            part = cut[number * (len(cut) - 1) // (PLACES - 1)]
            plain_s, plain_ids = read(path, part.begin, part.end, "", "")
            index_s, index_ids = read(path, part.begin, part.end, str(options.work / "indexes"), found["sha256"])
            assert plain_ids == index_ids
            print(f"partition at {part.begin / 1e9:.2f} GB, {(part.end - part.begin) / 1e6:.0f} MB: ", end="")
            print(f"{plain_s:.2f} s without, {index_s:.2f} s with the index", flush=True)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Every task of a stage has one element, whatever the numbers; an element whose workers are killed goes on."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cluster.elements import element_of_task, tasks_of_element
from tests.cluster.faulty_prep import VARIABLE
from tests.conftest import write_corpus
from tests.processes import run_command


@given(total=st.integers(0, 300), parts=st.integers(1, 70))
def test_elements_share_the_tasks_out_in_blocks(total: int, parts: int) -> None:
    blocks = [tasks_of_element(total, part, parts) for part in range(parts)]
    assert [index for block in blocks for index in block] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
    owners = [element_of_task(index, total, parts) for index in range(total)]
    assert owners == [part for part, block in enumerate(blocks) for _ in block]


def test_too_little_memory_for_all_workers_is_no_task_s_fault(tmp_path: Path, shard_folder: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for number in range(8):
        write_corpus(tmp_path / f"corpus/{number}.jsonl", 20, first=20 * number)
    (tmp_path / "prep.yaml").write_text(
        f"corpus: {{paths: ['{tmp_path}/corpus']}}\ntokenizer: {shard_folder}/tokenizer.json\nseq_length: 32\n"
        f"output: {tmp_path}/shards\nnum_workers: 2\n"
    )
    faults = {"partition_bytes": 5_000, "poison": {"map-1": "kill beside", "map-6": "kill beside"}}
    argv = ["--config", str(tmp_path / "prep.yaml"), "--part", "0", "--parts", "1"]
    for stage in ("plan", "map"):
        ended = run_command(
            "tests.cluster.faulty_prep", *argv, "--stage", stage, **{VARIABLE: json.dumps(faults)},
            PYTHONPATH=str(Path(__file__).parents[2]),
        )  # fmt: skip
    assert "map: 8 of 8 tasks run" in ended.stdout, "the second one ran with no worker beside it"
    assert ended.stdout.count("going on with half as many") == 1

"""Many processes check a checkpoint together, each a share of its files."""

from pathlib import Path

import pytest

from pipeline.checkpoints.format import CheckpointError, manifest_text, size_and_hash
from pipeline.checkpoints.reading import verify_checkpoint

NAMES = [f"weights-{number:05d}-of-00005.safetensors" for number in range(5)] + ["trainer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_text(f"bytes of {name}")
    (tmp_path / "manifest.json").write_text(manifest_text({name: size_and_hash(tmp_path / name) for name in NAMES}))
    return tmp_path


def finds_a_problem(folder: Path, part: int, parts: int) -> bool:
    try:
        verify_checkpoint(folder, part, parts)
    except CheckpointError:
        return True
    return False


@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_a_changed_file_is_found_by_the_one_process_that_reads_it(folder: Path, parts: int) -> None:
    assert not any(finds_a_problem(folder, part, parts) for part in range(parts))
    for name in NAMES:
        sound = (folder / name).read_text()
        (folder / name).write_text(sound.replace("bytes", "Bytes"))
        assert sum(finds_a_problem(folder, part, parts) for part in range(parts)) == 1, name
        (folder / name).write_text(sound)


def test_a_missing_or_cut_file_is_found_by_every_process(folder: Path) -> None:
    (folder / NAMES[2]).write_text("")
    assert all(finds_a_problem(folder, part, 4) for part in range(4))
    (folder / NAMES[2]).unlink()
    assert all(finds_a_problem(folder, part, 4) for part in range(4))

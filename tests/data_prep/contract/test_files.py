import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_prep.contract.files import follow_umask, is_unfinished, safetensors_written_to, write_atomically
from tests.full_disk import full_disk


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "ä\n", durable=durable)
    assert path.read_bytes() == b"\xc3\xa4\n"
    write_atomically(path, b"\xff", durable=durable)
    assert path.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", "no file can replace a folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "run.json"]


def test_a_file_that_a_kill_left_is_told_from_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: os._exit(9))  # as if killed: nothing is cleaned up
    if (child := os.fork()) == 0:
        write_atomically(tmp_path / "run.json", "new")
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert is_unfinished(left)
    assert not is_unfinished(tmp_path / "run.json")
    assert not is_unfinished(tmp_path / ".run.json")


def test_a_disk_without_room_is_an_os_error_of_safetensors_too(tmp_path: Path) -> None:
    array = np.zeros(10_000)
    with full_disk(1_000), pytest.raises(OSError, match="File too large") as error, safetensors_written_to(tmp_path):
        save_file({"a": array}, tmp_path / "a.safetensors")
    assert error.value.errno == errno.EFBIG
    with safetensors_written_to(tmp_path):
        save_file({"a": array}, tmp_path / "a.safetensors")
    (tmp_path / "new").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_of_its_owner_alone_follows_the_umask(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("x")
    path.chmod(0o600)
    before = os.umask(mask)
    try:
        follow_umask(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]

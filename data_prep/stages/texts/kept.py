"""What an earlier preparation with keep_documents left of a part of the corpus."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.stages.records import RECORD, committed, sizes_and_hashes
from data_prep.stages.work_plan import WorkPlan


def taken_over(plan: WorkPlan, stage: str, index: int, kept: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Files of a map task of an earlier preparation, these or all, as a task's own result; the map task's record.

    Raises:
        UserError: they are not what that preparation left.
    """
    try:
        record = json.loads((kept / RECORD).read_text())
        files = record.pop("files")
        if names:
            files = {name: files[name] for name in names}
        with committed(plan, stage, index, {key: value for key, value in record.items() if key != "plan"}) as folder:
            for name in files:
                put(kept / name, folder / name)
            if sizes_and_hashes(folder) != files:
                raise UserError(f"{kept} is damaged: restore {kept.parents[1]} from a copy or prepare it again")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot take over the documents {kept}: {error}") from error
    return record


def put(source: Path, target: Path) -> None:
    """A file in another place too, without its bytes twice where that can be."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)

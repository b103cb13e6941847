"""Exports as other libraries meet them: a folder of each kind of layout and each head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.layouts import LAYOUTS
from tests.tiny_exports import write_folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``exported(kind, model_class, **options)``: the folder, which no test changes."""
    written: dict[Any, Path] = {}

    def write(kind: str, model_class: Any, **options: Any) -> Path:
        key = (kind, model_class, repr(sorted(options.items())))
        if key not in written:
            layout, own = LAYOUTS[kind]
            written[key] = write_folder(
                tmp_path_factory.mktemp("exported") / kind, model_class, layout, **own, **options
            )
        return written[key]

    return write

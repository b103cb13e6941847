"""Imports of libraries that mark functions with ``torch.compile`` which are never called here."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def leaving_uncompiled() -> Iterator[None]:
    """What is imported inside has its marked functions as they are written, and says nothing of what it lacks.

    The first mark would load torch's whole compiler, a third of what a process's start takes.
    """
    with warnings.catch_warnings(), mock.patch("torch.compile", _as_written):
        warnings.simplefilter("ignore")  # Megatron-core tells which optional CUDA packages are missing
        yield


def _as_written(function: Callable[..., Any] | None = None, **_options: Any) -> Callable[..., Any]:
    return _as_written if function is None else function

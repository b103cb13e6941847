"""Which cases of a test `make test` leaves to `make test-long`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def long(*values: object) -> Any:
    """A case of ``parametrize`` that proves once more, elsewhere, what its neighbours prove."""
    return pytest.param(*values, marks=pytest.mark.long)


def long_unless(is_short: Callable[..., bool], cases: Iterable[tuple[object, ...]]) -> list[Any]:
    """The cases, all but those that are short marked as long."""
    return [pytest.param(*case) if is_short(*case) else long(*case) for case in cases]

"""What the stages tell whoever watches them."""

from typing import Protocol


class Progress(Protocol):
    """Told how far the work is."""

    def start(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """A stage begins, with ``total`` units of work, ``done`` of them by an earlier start."""
        ...

    def advance(self, count: int, documents: int = 0) -> None:
        """``count`` more units are done, and with them ``documents`` documents."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know."""
        ...

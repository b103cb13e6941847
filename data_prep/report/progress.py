"""What the stages tell whoever watches them."""

from typing import Protocol


class Progress(Protocol):
    """Told how the work goes on."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """A stage begins, with so many units of work."""
        ...

    def advance(self, count: int, documents: int = 0) -> None:
        """So many units are done, and with them so many documents."""
        ...

    def note(self, message: str) -> None:
        """Something the user should know."""
        ...

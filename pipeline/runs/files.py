"""Small files that are there whole or not at all."""

from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file whole: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""Shards with a byte that is wrong."""

from pathlib import Path
from typing import Any

from pipeline.data.mixture import Mixture


def damage(folder: Path, shards: Mixture, chunk: int) -> None:
    """Change a byte of a chunk of the training split."""
    places: list[tuple[str, dict[str, Any]]] = [
        (shard["name"], entry)
        for shard in shards.folders[0].manifest["splits"]["train"]["shards"]
        for entry in shard["chunks"]
    ]
    name, entry = places[chunk]
    content = bytearray((folder / name).read_bytes())
    content[entry["offset"] + entry["length"] - 3] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(content)

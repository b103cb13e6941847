"""Shards with a byte that is wrong."""

from pathlib import Path

from pipeline.data.mixture import Mixture


def damage(folder: Path, shards: Mixture, chunk: int) -> None:
    """Change a byte of a chunk of the training split."""
    index = shards.folders[0].indexes["train"]
    name, (offset, length) = index.name(index.shard_of(chunk)), index.place(chunk)
    content = bytearray((folder / name).read_bytes())
    content[offset + length - 3] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(content)

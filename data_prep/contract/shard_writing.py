"""Shards, indexes and manifests, written to the byte."""

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.contract.files import process_name
from data_prep.contract.manifest import compute_root_hash, manifest_bytes
from data_prep.contract.shard_format import (
    BLOCK,
    MANIFEST,
    SCHEMA_VERSION,
    chunk_hash,
    encode_arrays,
    file_sha256,
    index_name,
    member_header,
    shard_name,
)
from data_prep.contract.shard_index import index_of, write_index


def write_shard(folder: Path, split: str, index: int, chunks: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Write one tar; its bytes depend on the chunks alone.

    The file appears under its name when it is complete and on disk, never before.

    Returns:
        The shard's entry, for ``write_manifest``: name, size, sha256, rows, and per chunk offset (of the
        member's data in the file), length, rows and xxh3 (128 bit).
    """
    path = folder / shard_name(split, index)
    partial = path.with_name(f"{path.name}.{process_name()}.partial")
    entries: list[dict[str, Any]] = []
    try:
        with partial.open("wb") as stream:
            with tarfile.TarFile(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, arrays in enumerate(chunks):
                    data = encode_arrays(arrays)
                    offset = tar.offset + BLOCK
                    tar.addfile(member_header(path.name, number, len(data)), io.BytesIO(data))
                    rows = len(arrays["lengths"])
                    entries.append({"offset": offset, "length": len(data), "rows": rows, "xxh3": chunk_hash(data)})
            stream.flush()
            os.fsync(stream.fileno())
        sha256 = file_sha256(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return {
        "name": path.name,
        "size": path.stat().st_size,
        "sha256": sha256,
        "rows": sum(entry["rows"] for entry in entries),
        "chunks": entries,
    }


def file_entry(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file, as a manifest pins it."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}


def write_manifest(folder: Path, content: Mapping[str, Any], entries: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Write the index of each split, then ``manifest.json``, which pins them.

    Args:
        folder: holds the shards.
        content: the manifest but for schema version, root hash and what follows from the shards. ``splits`` has what
            was counted of each split: rows, and what else there is, such as documents and tokens. ``files`` has the
            ``file_entry`` of further files by their keys in ``PINNED_FILES``.
        entries: split -> what ``write_shard`` returned for each of its shards, in order; read once, one at a time.

    Returns:
        The root hash.

    Raises:
        ValueError: an entry is not that of the next shard.
    """
    splits = {}
    for split in content["splits"]:
        index = index_of(split, entries[split])
        path = folder / index_name(split)
        with _on_disk(path) as stream:
            write_index(index, stream)
        counted = content["splits"][split]
        splits[split] = {**counted, **index.counts, "rows": counted["rows"], "index": file_entry(path)}
    manifest = {**content, "schema_version": SCHEMA_VERSION, "splits": splits}
    manifest["root_hash"] = compute_root_hash(manifest)
    with _on_disk(folder / MANIFEST) as stream:
        stream.write(manifest_bytes(manifest))
    return manifest["root_hash"]


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, on disk when the block is left."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())

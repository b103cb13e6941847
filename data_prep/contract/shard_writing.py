"""Shards and manifests, written to the byte."""

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.contract.manifest import compute_root_hash, manifest_bytes
from data_prep.contract.shard_format import (
    BLOCK,
    MANIFEST,
    SCHEMA_VERSION,
    chunk_hash,
    encode_arrays,
    file_sha256,
    member_header,
    shard_name,
)


def write_shard(folder: Path, split: str, index: int, chunks: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Write one tar; its bytes depend on the chunks alone.

    The file appears under its name when it is complete and on disk, never before.

    Returns:
        The shard's entry in the manifest: name, size, sha256, rows, and per chunk offset (of the
        member's data in the file), length, rows and xxh3 (128 bit).
    """
    path = folder / shard_name(split, index)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
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


def write_manifest(folder: Path, content: Mapping[str, Any]) -> str:
    """Write ``manifest.json`` for ``content`` (everything but schema version and root hash); the root hash."""
    manifest = {"schema_version": SCHEMA_VERSION, **content}
    manifest["root_hash"] = compute_root_hash(manifest)
    with (folder / MANIFEST).open("wb") as stream:
        stream.write(manifest_bytes(manifest))
        stream.flush()
        os.fsync(stream.fileno())
    return manifest["root_hash"]

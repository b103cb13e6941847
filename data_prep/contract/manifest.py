"""``manifest.json``, which pins everything in a shard folder by size and sha256."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import (
    MANIFEST,
    PINNED_FILES,
    READ_VERSIONS,
    SPLITS,
    index_name,
    shard_name,
)
from data_prep.contract.shard_index import ShardIndex, index_of


def compute_root_hash(manifest: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of everything but the root hash itself."""
    content = {key: value for key, value in manifest.items() if key != "root_hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, to the byte."""
    return (json.dumps(manifest, sort_keys=True, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check ``manifest.json`` alone.

    Raises:
        UserError: no folder, no manifest, a schema of another version, or a damaged manifest.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(
            f"no shard folder {folder}: make one with `narrowbert-prep shards --output {shlex.quote(str(folder))}`"
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {MANIFEST}, so it is no shard folder: make one with `narrowbert-prep shards`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, path: str) -> dict[str, Any]:
    """The manifest of these bytes, checked; ``path`` names it in errors.

    Raises:
        UserError: a schema of another version, or a damaged manifest.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged (not JSON): restore it or prepare again") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version not in READ_VERSIONS:
        raise UserError(
            f"{path} has schema version {version}, this program reads {' and '.join(map(str, READ_VERSIONS))}: "
            "prepare the shards again"
        )
    # Comparing the bytes as well refuses damage that JSON would not show, as in white space.
    if manifest.get("root_hash") != compute_root_hash(manifest) or content != manifest_bytes(manifest):
        raise UserError(f"{path} is damaged (its root hash does not match): restore it or prepare again")
    for name, expected in _names(manifest):
        if name != expected:
            raise UserError(f"{path} names {name!r} in place of {expected}")
    return manifest


def _names(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(a name in the manifest, what it must be): so no name leaves the folder."""
    for split, entry in manifest["splits"].items():
        yield split, split if split in SPLITS else " or ".join(SPLITS)
        if manifest["schema_version"] == 1:
            yield from ((shard["name"], shard_name(split, number)) for number, shard in enumerate(entry["shards"]))
        else:
            yield entry["index"]["name"], index_name(split)
    for key, entry in _pinned_files(manifest).items():
        yield entry["name"], PINNED_FILES.get(key, " or ".join(PINNED_FILES.values()))


def _pinned_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    if manifest["schema_version"] == 1:
        return {"rejects": manifest["rejects"]} if "rejects" in manifest else {}
    return manifest.get("files", {})


def without_shards(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, ShardIndex]]:
    """A manifest of schema 1, which lists all shards, as the later schema has it, and the index of each split.

    Schema version and root hash stay those of the file.
    """
    indexes = {split: index_of(split, entry["shards"]) for split, entry in manifest["splits"].items()}
    splits = {
        split: {**entry, **indexes[split].counts, "rows": entry["rows"]} for split, entry in manifest["splits"].items()
    }
    rest = {key: value for key, value in manifest.items() if key != "rejects"}
    return {**rest, "splits": splits, "files": _pinned_files(manifest)}, indexes

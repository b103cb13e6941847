"""``manifest.json``, which lists and hashes everything in a shard folder."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.contract.command_line import UserError
from data_prep.contract.shard_format import (
    MANIFEST,
    REJECTS,
    SCHEMA_VERSION,
)

_SHARD_NAME = re.compile(r"(train|validation)-\d{5,}\.tar")


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
        raise UserError(f"no shard folder {folder}: make one with `narrowbert-prep shards --output {folder}`")
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
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: prepare the shards again"
        )
    # Comparing the bytes as well refuses damage that JSON would not show, as in white space.
    if manifest.get("root_hash") != compute_root_hash(manifest) or content != manifest_bytes(manifest):
        raise UserError(f"{path} is damaged (its root hash does not match): restore it or prepare again")
    bad = [s["name"] for s in all_shards(manifest) if not _SHARD_NAME.fullmatch(s["name"])]
    if bad:
        raise UserError(f"{path} names {bad[0]!r}, which is no shard's name")
    if manifest.get("rejects", {}).get("name", REJECTS) != REJECTS:
        raise UserError(f"{path} names {manifest['rejects']['name']!r} in place of {REJECTS}")
    return manifest


def all_shards(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of all shards, train before validation."""
    for split in manifest["splits"].values():
        yield from split["shards"]

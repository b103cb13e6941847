"""A finished shard folder, copied into an object store.

Preparation needs a disk on which a rename is atomic, so the folder is made there and copied when it is whole. The
manifest is copied last: a folder in a store is complete where it has one.
"""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from data_prep.contract.command_line import UserError
from data_prep.contract.files import is_unfinished
from data_prep.contract.redaction import redact_urls
from data_prep.contract.remote import filesystem_of, reason, retried
from data_prep.contract.shard_format import MANIFEST
from data_prep.contract.shards import open_shards
from data_prep.report.progress import Progress

MARK = "upload-of"
"""A file beside what is copied, with the root hash: files of an upload that was cut short are trusted by it alone."""

TRANSFERS = 8
"""Files on their way at once."""

Result = TypeVar("Result")

STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


def check_store(url: str) -> None:
    """Raise UserError for a URL that shards cannot be copied to."""
    if url.partition("://")[0] not in STORES or "::" in url or "?" in url:
        raise UserError(
            f"shards are not copied to {redact_urls(url)}: give a URL such as s3://bucket/folder, gs:// or abfs://"
        )


def upload(folder: str | Path, url: str, progress: Progress) -> str:
    """Copy a shard folder to ``url``, or go on with a copy that was cut short; its root hash.

    Files are compared by size when they are there, and the folder of this machine is not changed.

    Raises:
        UserError: ``folder`` is no whole shard folder, ``url`` is no store or holds another folder, or the store
            refuses.
    """
    check_store(url)
    shards = open_shards(folder)
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not is_unfinished(path))
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    place = url.rstrip("/")
    target = _Store(place)
    there = target.sizes()
    manifest = (Path(folder) / MANIFEST).read_bytes()
    if MANIFEST in there:
        if target.read(MANIFEST) != manifest:
            raise UserError(f"{redact_urls(place)} holds other shards: delete it or name another URL")
    elif there.get(MARK) is None or target.read(MARK) != shards.root_hash.encode():
        there = {}
        target.write(MARK, shards.root_hash.encode())
    todo = [name for name, size in sizes.items() if name != MANIFEST and there.get(name) != size]
    progress.start("upload", sum(sizes.values()), "B", sum(sizes.values()) - sum(sizes[name] for name in todo))
    with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
        copies = {pool.submit(target.copy, Path(folder) / name, name): name for name in todo}
        try:
            for copy in concurrent.futures.as_completed(copies):
                copy.result()
                progress.advance(sizes[copies[copy]])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    there = target.sizes()
    for name, size in sizes.items():
        if name != MANIFEST and there.get(name) != size:
            found = f"has {there[name]} bytes instead of {size}" if name in there else "is not there"
            raise UserError(f"{redact_urls(place)}/{name} {found} after it was written: give the command again")
    target.write(MANIFEST, manifest)
    target.remove(MARK)
    return shards.root_hash


class _Store:
    """A folder of an object store; what may pass is tried again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._filesystem, self._path = self._tried("reach", lambda: filesystem_of(url))

    def sizes(self) -> dict[str, int]:
        """Name -> size of all files in the folder, by one listing."""

        def listing() -> dict[str, int]:
            self._filesystem.invalidate_cache()
            try:
                found = self._filesystem.find(self._path, detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._path.rstrip("/")) + 1
            return {path[start:]: entry["size"] for path, entry in found.items()}

        return self._tried("list", listing)

    def read(self, name: str) -> bytes:
        return self._tried(f"read {name} in", lambda: self._filesystem.cat_file(f"{self._path}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        self._tried(f"write {name} in", lambda: self._filesystem.pipe_file(f"{self._path}/{name}", content))

    def copy(self, path: Path, name: str) -> None:
        self._tried(f"write {name} in", lambda: self._filesystem.put_file(str(path), f"{self._path}/{name}"))

    def remove(self, name: str) -> None:
        if name in self.sizes():
            self._tried(f"delete {name} in", lambda: self._filesystem.rm_file(f"{self._path}/{name}"))

    def _tried(self, verb: str, action: Callable[[], Result]) -> Result:
        what = f"{verb} {redact_urls(self._url)}"
        try:
            return retried(action, what)
        except UserError:
            raise
        except Exception as error:  # each store raises exceptions of its own
            raise UserError(f"cannot {what}: {reason(error)}") from error

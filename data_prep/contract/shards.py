"""A shard folder opened and checked.

``shard_format`` says what a folder holds, ``manifest`` and ``shard_index`` read its lists, ``shard_split`` reads its
chunks, and ``data_prep.verification`` checks every byte of it.
"""

import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.contract.command_line import UserError
from data_prep.contract.manifest import parse_manifest, read_manifest, without_shards
from data_prep.contract.remote import RemoteFolder, is_url
from data_prep.contract.shard_format import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Geometry,
    file_sha256,
)
from data_prep.contract.shard_index import ShardIndex, map_index
from data_prep.contract.shard_split import RESTORE, Files, ShardSplit

if TYPE_CHECKING:  # it brings tokenizers along
    from data_prep.contract.masking.settings import Masking


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """A shard folder whose manifest, tokenizer and file sizes have been checked; see ``open_shards``."""

    path: Path
    """The folder; of a remote one the cache."""
    manifest: dict[str, Any]
    """manifest.json; of a folder of schema 1 without its list of shards, which ``indexes`` holds."""
    indexes: Mapping[str, ShardIndex]
    """Split -> its shards and chunks."""
    remote: RemoteFolder | None = None
    """Where it comes from, if not from this machine."""

    @property
    def location(self) -> str:
        """What ``open_shards`` opens this folder by, from anywhere: the absolute path, or the URL."""
        return str(self.path.resolve()) if self.remote is None else self.remote.url

    @property
    def files(self) -> Files:
        """Where its files are."""
        return Files(path=self.path, remote=self.remote)

    @property
    def root_hash(self) -> str:
        """sha256 over everything the manifest pins."""
        return self.manifest["root_hash"]

    @property
    def seq_length(self) -> int:
        """S, tokens per row."""
        return self.manifest["seq_length"]

    @property
    def masked_per_row(self) -> int:
        """P, mask slots of a row and variant."""
        return self.manifest["masked_per_row"]

    @property
    def num_variants(self) -> int:
        """K, mask variants of each row."""
        return self.manifest["num_variants"]

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id of the tokenizer."""
        return self.manifest["vocab_size"]

    @property
    def special_ids(self) -> dict[str, int]:
        """{"pad": id, "unk": id, "cls": id, "sep": id, "mask": id}."""
        return self.manifest["special_ids"]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json the rows were made with."""
        return self.path / TOKENIZER

    @property
    def mask_unit(self) -> str:
        """What is masked as one: token, word, span or ngram; of a folder that does not say so, token."""
        return self.manifest.get("configuration", {}).get("mask", {}).get("unit", "token")

    @property
    def geometry(self) -> Geometry:
        """The sizes that decide every shape of a chunk."""
        return Geometry(
            seq_length=self.seq_length,
            masked_per_row=self.masked_per_row,
            num_variants=self.num_variants,
            vocab_size=self.vocab_size,
            masks_stored=self.manifest.get("masks_stored", True),
        )

    def split(self, name: str) -> ShardSplit:
        """The split ``train`` or ``validation``.

        Raises:
            UserError: no such split.
        """
        if name not in self.indexes:
            raise UserError(f"{self.path} has no split '{name}': it has {', '.join(SPLITS)}")
        stored = self.geometry.masks_stored
        return ShardSplit(self.files, self.indexes[name], self.geometry, None if stored else self._masking())

    def split_with_rows(self, name: str) -> ShardSplit:
        """As ``split``, for what makes no sense without rows.

        Raises:
            UserError: no such split, or it is empty.
        """
        split = self.split(name)
        if not split.num_rows:
            raise UserError(
                f"{self.remote or self.path} has no {name} rows: prepare it with a validation_fraction above 0, or "
                "with validation_paths"
            )
        return split

    def _masking(self) -> "Masking":
        """What the masks follow from where they are not stored."""
        from data_prep.config import MaskConfig
        from data_prep.contract.masking.settings import masking_of

        configuration = self.manifest["configuration"]
        return masking_of(
            MaskConfig(**configuration["mask"]),
            masked_per_row=self.masked_per_row,
            seed=configuration["seed"],
            special_ids=self.special_ids,
            tokenizer=self.tokenizer_path,
        )


def open_shards(folder: str | Path) -> ShardFolder:
    """Open a shard folder: checks schema version, root hash, tokenizer, counts, and every shard's size.

    Of a folder behind a URL the manifest is read and the tokenizer is fetched; a chunk is fetched into the cache
    (~/.cache/narrowbert, or the variable NARROWBERT_CACHE) when it is first touched, and checked then. The chunks there
    stay within 32 GiB, or the bytes in the variable NARROWBERT_CACHE_BYTES. From a server that sends no ranges of
    bytes, the whole shard is fetched.

    Raises:
        UserError: whatever does not match, by file name.

    Example:
        >>> import narrowbert
        >>> shards = narrowbert.open_shards("shards/mine")
        >>> shards.split("train").chunk(0)["input_ids"].shape[1] == shards.seq_length
        True
    """
    opened = open_folder(folder)
    problems = [*count_problems(opened)]
    if opened.remote is None:
        problems += [*tokenizer_problems(opened), *(f"shard {problem}" for problem in _size_problems(opened))]
    else:
        opened.files.local(_tokenizer_entry(opened))
    if problems:
        raise UserError(f"{problems[0]}; {RESTORE}")
    return opened


def open_folder(folder: str | Path) -> ShardFolder:
    """The folder with its manifest and indexes checked, nothing else.

    Raises:
        UserError: one of them is missing or damaged.
    """
    if is_url(folder):
        remote = RemoteFolder(url=str(folder))
        remote.check()
        manifest = parse_manifest(remote.read(MANIFEST), f"{remote}/{MANIFEST}")
        files = Files(path=remote.cache(manifest["root_hash"]), remote=remote)
    else:
        manifest, files = read_manifest(Path(folder)), Files(path=Path(folder), remote=None)
    if manifest["schema_version"] == 1:
        manifest, indexes = without_shards(manifest)
    else:
        indexes = {name: _open_index(files, name, split["index"]) for name, split in manifest["splits"].items()}
    return ShardFolder(path=files.path, remote=files.remote, manifest=manifest, indexes=indexes)


def _open_index(files: Files, split: str, entry: Mapping[str, Any]) -> ShardIndex:
    path = files.path / entry["name"]
    if files.remote is not None:  # without the size a copy that is there is checked by its sha256
        files.local({"name": entry["name"], "sha256": entry["sha256"]})
    elif problem := files.problem(entry):
        raise UserError(f"{problem}; {RESTORE}")
    try:
        if files.remote is None and file_sha256(path) != entry["sha256"]:
            raise UserError(f"{path} is damaged (its sha256 is not the manifest's); {RESTORE}")
        return map_index(split, path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _tokenizer_entry(folder: ShardFolder) -> dict[str, Any]:
    return {"name": TOKENIZER, "sha256": folder.manifest["tokenizer"]["sha256"]}


def tokenizer_problems(folder: ShardFolder) -> Iterator[str]:
    """What is wrong with the folder's tokenizer.json, if anything."""
    entry = _tokenizer_entry(folder)
    problem = folder.files.problem(entry)
    if problem:
        yield problem
    elif file_sha256(folder.tokenizer_path) != entry["sha256"]:
        yield f"{folder.tokenizer_path} is not the tokenizer the shards were made with"


def _size_problems(folder: ShardFolder) -> Iterator[str]:
    """Shards that are missing or have another size."""
    # Listing the folder first spares a network file system one question for every file.
    with os.scandir(folder.path) as entries:
        found = {entry.name: _file_size(entry) for entry in entries if entry.name.endswith(".tar")}
    for index in folder.indexes.values():
        for shard, size in enumerate(index.shard_sizes.tolist()):
            there = found.get(index.name(shard))
            if there is None:
                yield f"{folder.path / index.name(shard)} is missing"
            elif there != size:
                yield f"{folder.path / index.name(shard)} has {there} bytes instead of {size}"


def _file_size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of what a name leads to; None where that is no file."""
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def count_problems(folder: ShardFolder) -> Iterator[str]:
    """Splits whose counts do not add up."""
    for name, split in folder.manifest["splits"].items():
        index = folder.indexes[name]
        if not index.adds_up() or any(split[key] != count for key, count in index.counts.items()):
            yield f"{folder.files.name(MANIFEST)}: the row counts of split {name} do not add up"

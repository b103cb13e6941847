"""Shard folders of made-up tokens, packed and masked as the commands do it, in milliseconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import MaskConfig, PackingConfig
from data_prep.contract.manifest import compute_root_hash, manifest_bytes
from data_prep.contract.masking.masks import mask_rows
from data_prep.contract.masking.settings import Masking
from data_prep.contract.shard_format import INPUTS, MANIFEST, SPLITS, TOKENIZER, Geometry, file_sha256, index_name
from data_prep.contract.shard_index import ShardIndex
from data_prep.contract.shard_writing import write_manifest, write_shard
from data_prep.contract.shards import open_folder
from data_prep.rows.packing import Rows, fill_rows, plan_rows

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
GEOMETRY = Geometry(seq_length=32, masked_per_row=5, num_variants=3, vocab_size=200)
CHUNK_ROWS = 16
SHARD_CHUNKS = 3


def make_folder(folder: Path, mode: str = "concat", seed: int = 0, **content: object) -> Path:
    """A folder that `verify` passes: train of two shards or more, validation of one."""
    folder.mkdir(parents=True)
    (folder / TOKENIZER).write_text(json.dumps({"made": "up", "entries": list(range(40))}))
    splits, entries = {}, {}
    for number, split in enumerate(SPLITS):
        lengths = np.random.default_rng(seed).integers(3, 90, size=(80, 20)[number])
        chunks = list(make_chunks(lengths, mode, first_id=number << 32))
        groups = [chunks[start : start + SHARD_CHUNKS] for start in range(0, len(chunks), SHARD_CHUNKS)]
        entries[split] = [write_shard(folder, split, index, group) for index, group in enumerate(groups)]
        splits[split] = {"rows": sum(shard["rows"] for shard in entries[split])}
    manifest = {
        **vars(GEOMETRY),
        "special_ids": SPECIAL,
        "tokenizer": {"sha256": file_sha256(folder / TOKENIZER)},
        "splits": splits,
        **content,
    }
    write_manifest(folder, manifest, entries)
    return folder


def entries_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Split -> what `write_shard` returned for each shard, read back from the index."""
    indexes = open_folder(folder).indexes
    return {split: [_entry(index, shard) for shard in range(index.num_shards)] for split, index in indexes.items()}


def _entry(index: ShardIndex, shard: int) -> dict[str, Any]:
    chunks = [
        {
            "offset": index.place(chunk)[0],
            "length": index.place(chunk)[1],
            "rows": int(index.chunk_rows[chunk]),
            "xxh3": index.chunk_hash(chunk),
        }
        for chunk in index.chunks(shard)
    ]
    return {**index.file(shard), "rows": int(index.shard_rows[shard]), "chunks": chunks}


def as_schema_1(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """The same folder as the first release wrote it: shards and chunks stand in the manifest."""
    entries = entries_of(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    splits = {
        split: {
            **{key: value for key, value in entry.items() if key not in ("chunks", "size", "index")},
            "shards": entries[split],
        }
        for split, entry in manifest["splits"].items()
    }
    content = {key: value for key, value in manifest.items() if key not in ("root_hash", "files")}
    files = manifest.get("files", {})
    content |= {"schema_version": 1, "splits": splits, **{key: files[key] for key in files if key == "rejects"}}
    if "inputs" in files:
        content["inputs"] = [json.loads(line) for line in (folder / INPUTS).read_text().splitlines()]
        (folder / INPUTS).unlink()
    change(content)
    content["root_hash"] = compute_root_hash(content)
    (folder / MANIFEST).write_bytes(manifest_bytes(content))
    for split in entries:
        (folder / index_name(split)).unlink()
    return folder


def make_chunks(lengths: np.ndarray, mode: str, first_id: int) -> Iterator[dict[str, np.ndarray]]:
    """Chunks of the rows of documents of such lengths, of random tokens."""
    short = 0.0 if mode == "isolated" else 0.1
    packing = PackingConfig(mode=mode, short_seq_prob=short)  # type: ignore[arg-type]
    plan = plan_rows(lengths, packing=packing, seq_length=GEOMETRY.seq_length, seed=1, key=0)
    tokens = np.random.default_rng(2).integers(5, GEOMETRY.vocab_size, size=lengths.sum()).astype("<u2")
    special = {role: SPECIAL[role] for role in ("pad", "cls", "sep")}
    for first in range(0, len(plan.lengths), CHUNK_ROWS):
        rows = fill_rows(plan, first, min(first + CHUNK_ROWS, len(plan.lengths)), tokens, **special)
        yield _masked(rows, np.arange(first_id + first, first_id + first + len(rows.lengths), dtype=np.uint64))


def _masked(rows: Rows, sequence_ids: np.ndarray) -> dict[str, np.ndarray]:
    masking = Masking(
        mask=MaskConfig(),
        masked_per_row=GEOMETRY.masked_per_row,
        seed=3,
        unmaskable_ids=np.array([SPECIAL[role] for role in ("pad", "cls", "sep")]),
        mask_id=SPECIAL["mask"],
        ordinary_ids=np.arange(5, GEOMETRY.vocab_size),
        continues_word=None,
    )
    masks = mask_rows(rows.input_ids, rows.lengths, sequence_ids, masking, GEOMETRY.num_variants)
    return {**vars(rows), **vars(masks), "sequence_ids": sequence_ids}

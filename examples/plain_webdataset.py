"""Use the shards in a trainer of your own: ``plain_webdataset.py SHARD_FOLDER``.

``webdataset`` and ``safetensors`` read the tars without this project, one chunk of rows at a time. ``as_webdataset``
gives an ordinary WebDataset pipeline of masked rows, which a PyTorch ``DataLoader`` reads.
"""

import sys
from pathlib import Path

import torch
from safetensors.numpy import load
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset  # webdataset.WebDataset, for type checkers

import narrowbert

BATCH_ROWS = 8


def read_alone(shard_folder: Path) -> None:
    """Count rows and masked positions of the first mask variant, with WebDataset alone."""
    tars = sorted(map(str, shard_folder.glob("train-*.tar")))
    num_rows = num_masked = 0
    for sample in WebDataset(tars, shardshuffle=False):
        chunk = load(sample["rows.safetensors"])  # input_ids [R, S], masked_positions [R, K, P]
        num_rows += len(chunk["input_ids"])
        num_masked += int(chunk["num_masked"][:, 0].sum())  # [R, K]
    print(f"webdataset alone: {num_rows} rows, {num_masked} masked positions")


def read_rows(shard_folder: Path) -> None:
    """Read one epoch and count what a trainer would compute with."""
    rows = narrowbert.as_webdataset(shard_folder, "train", epoch=0, shuffle_seed=0).shuffle(64)
    loader = DataLoader(rows, batch_size=BATCH_ROWS)  # type: ignore[arg-type] # a pipeline is an iterable dataset
    batches = num_rows = num_masked = 0
    for batch in loader:
        batches += 1
        num_rows += len(batch["input_ids"])  # [BATCH_ROWS, seq_length]
        num_masked += int(batch["label_mask"].sum())  # [BATCH_ROWS, masked_per_row]
        masked = torch.gather(batch["original_ids"], 1, batch["masked_positions"])
        assert torch.equal(masked[batch["label_mask"]], batch["labels"][batch["label_mask"]])
    print(f"as_webdataset: {num_rows} rows, {num_masked} masked positions in {batches} batches")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: plain_webdataset.py SHARD_FOLDER")
    try:
        narrowbert.open_shards(sys.argv[1])  # one clear line where it is none
        read_alone(Path(sys.argv[1]))
        read_rows(Path(sys.argv[1]))
    except narrowbert.UserError as error:
        sys.exit(f"plain_webdataset.py: {error}")

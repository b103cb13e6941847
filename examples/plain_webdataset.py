"""Use the shards in a trainer of your own: ``plain_webdataset.py SHARD_FOLDER``.

``as_webdataset`` gives an ordinary WebDataset pipeline of decoded rows. Here a PyTorch ``DataLoader`` reads it.
"""

import sys

import torch
from torch.utils.data import DataLoader

import narrowbert

BATCH_ROWS = 8


def main(shard_folder: str) -> None:
    """Read one epoch and print what a trainer would compute with."""
    rows = narrowbert.as_webdataset(shard_folder, "train", epoch=0, shuffle_seed=0).shuffle(64)
    loader = DataLoader(rows, batch_size=BATCH_ROWS)  # type: ignore[arg-type] # a pipeline is an iterable dataset
    batches = num_rows = num_masked = 0
    for batch in loader:
        batches += 1
        num_rows += len(batch["input_ids"])  # [BATCH_ROWS, seq_length]
        num_masked += int(batch["label_mask"].sum())  # [BATCH_ROWS, masked_per_row]
        masked = torch.gather(batch["original_ids"], 1, batch["masked_positions"])
        assert torch.equal(masked[batch["label_mask"]], batch["labels"][batch["label_mask"]])
    print(f"{num_rows} rows in {batches} batches, {num_masked} masked positions")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: plain_webdataset.py SHARD_FOLDER")
    try:
        main(sys.argv[1])
    except narrowbert.UserError as error:
        sys.exit(f"plain_webdataset.py: {error}")

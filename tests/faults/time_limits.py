"""Makes every process group of a run on one of two ranks; prints the time limit of each, in seconds, as JSON.

Usage: python -m tests.faults.time_limits RANK PORT FOLDER TENSOR_PARALLEL_SIZE
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import _world

from pipeline.checkpoints.writing import CheckpointWriter
from pipeline.config import ModelConfig, RunConfig, TrainingConfig
from pipeline.engine.deepspeed_engine import build_engine, initialise_process_group
from pipeline.model.masked_lm import NarrowBertForPretraining
from pipeline.model.parameters import padded_vocab_size
from pipeline.processes.agreement import Agreement
from pipeline.processes.world import World


def main() -> None:
    rank, folder, tensor_parallel_size = int(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4])
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2], GLOO_SOCKET_IFNAME="lo")
    device = initialise_process_group(World(rank=rank, local_rank=rank, size=2), tensor_parallel_size, 7200.0)
    agreement = Agreement()
    model = ModelConfig(
        layout="sf", hidden_size=8, num_attention_heads=2, ffn_hidden_size=16, max_position_embeddings=8
    )
    training = TrainingConfig(
        global_batch_size=2, micro_batch_size=1, precision="fp32", tensor_model_parallel_size=tensor_parallel_size
    )
    config = RunConfig(model=model, training=training)
    torch.manual_seed(1)
    padded = padded_vocab_size(50, tensor_parallel_size)
    engine = build_engine(config, NarrowBertForPretraining(model, 50, padded), device)
    writer = CheckpointWriter(engine, folder)
    cpu = torch.device("cpu")
    limits = {name: group._get_backend(cpu).options._timeout.total_seconds() for group, name in _world.pg_names.items()}
    assert agreement
    assert writer
    distributed_c10d.barrier()
    print(json.dumps(limits))


if __name__ == "__main__":
    main()

"""Embeddings of exports through sentence-transformers' backends: torch, onnx, openvino.

    narrowbert export runs/control --output my-bert --model_type bert --pooling mean
    narrowbert onnx my-bert
    python3 -m venv optimum && optimum/bin/pip install 'sentence-transformers[onnx,openvino]' 'transformers<5'
    optimum/bin/python benchmarks/embedding_clients.py my-bert

Optimum takes no transformers 5, which the project needs, so this runs in an environment of its own and imports nothing
of the project. Prints the largest difference from torch. OpenVINO computes in fp32 here: left to itself it takes bf16
where the processor has it, which moves vectors by some hundredths.
"""

import sys

import numpy as np
from sentence_transformers import SentenceTransformer

TEXTS = ["the cat sat on the mat.", "a dog", "it was the best of times, it was the worst of times. " * 3]
OPTIONS = {"torch": {}, "onnx": {}, "openvino": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}}

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        vectors = {
            backend: SentenceTransformer(folder, backend=backend, device="cpu", model_kwargs=options).encode(TEXTS)
            for backend, options in OPTIONS.items()
        }
        for backend, found in vectors.items():
            print(f"{folder} {backend}: {np.abs(found - vectors['torch']).max():.1e} from torch")

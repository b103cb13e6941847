"""Search lines of text by meaning: ``embed_and_search.py MODEL_DIR TEXTS.txt "a query"``."""

import sys
from pathlib import Path

import numpy as np

import narrowbert


def main(model_dir: str, texts_path: str, query: str) -> None:
    """Print the three lines that are nearest to the query, by the cosine of their embeddings."""
    texts = Path(texts_path).read_text(encoding="utf-8").splitlines()
    vectors = narrowbert.encode(model_dir, [query, *texts], pooling="mean")  # [1 + texts, hidden_size]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors[1:] @ vectors[0]
    for index in np.argsort(-similarities)[:3]:
        print(f"{similarities[index]:.3f}  {texts[index]}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit('usage: embed_and_search.py MODEL_DIR TEXTS.txt "a query"')
    try:
        main(*sys.argv[1:])
    except (narrowbert.UserError, OSError) as error:
        sys.exit(f"embed_and_search.py: {error}")

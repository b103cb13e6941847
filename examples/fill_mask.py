"""Fill the [MASK] of sentences with an exported model: ``fill_mask.py MODEL_DIR "a [MASK] sentence" ...``."""

import sys

from transformers import pipeline
from transformers.pipelines.base import PipelineException


def main(model_dir: str, *sentences: str) -> None:
    """Print the most probable words."""
    fill_mask = pipeline("fill-mask", model=model_dir, trust_remote_code=True)
    for sentence in sentences:
        print(sentence)
        for guess in fill_mask(sentence):
            print(f"  {guess['score']:.3f}  {guess['token_str']}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit('usage: fill_mask.py MODEL_DIR "a [MASK] sentence" ["another [MASK]" ...]')
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, PipelineException) as error:  # no such model, or a sentence without [MASK]
        sys.exit(f"fill_mask.py: {' '.join(str(error).split())}")

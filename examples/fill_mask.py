"""Fill the [MASK] of a sentence with an exported model: ``fill_mask.py MODEL_DIR "a [MASK] sentence"``."""

import sys

from transformers import pipeline

model_dir, sentence = sys.argv[1:]
fill_mask = pipeline("fill-mask", model=model_dir, trust_remote_code=True)
print(sentence)
for guess in fill_mask(sentence):
    print(f"  {guess['score']:.3f}  {guess['token_str']}")

"""The README.md of an export."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig


def model_card(name: str, layout: str, mask_token: str, facts: Mapping[str, Any]) -> str:
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [narrowbert, masked-lm]
---
# {name}

A NarrowBERT masked-language encoder with layout `{layout}`: `s` is a self-attention sublayer, `f` a
feed-forward sublayer; what is right of `:`, if anything, computes the masked positions only
([Li et al., ACL 2023](https://arxiv.org/abs/2301.04761)).

| | |
| --- | --- |
{_rows(facts)}

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}", trust_remote_code=True)
print(fill_mask("Fill the {mask_token} in this sentence."))
```

`AutoModelForMaskedLM` scores the `{mask_token}` positions: other rows of its `logits` are zeros unless
their positions are given as `narrow_positions` (or there are labels, or no `{mask_token}` at all). Needs
transformers 5.18 or newer.
"""


def plain_card(name: str, config: PreTrainedConfig, mask_token: str, facts: Mapping[str, Any]) -> str:
    """Of an export in a plain form: the whole masked-LM model, or its encoder for embeddings."""
    (architecture,) = config.architectures or [""]
    if architecture.endswith("MaskedLM"):
        library, task, tags = "transformers", "fill-mask", "masked-lm"
        usage = f"""from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}")
print(fill_mask("Fill the {mask_token} in this sentence."))"""
    else:
        library, task, tags = "sentence-transformers", "feature-extraction", "sentence-transformers"
        usage = f"""from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{name}").encode(["A sentence."])"""
    return f"""---
library_name: {library}
pipeline_tag: {task}
tags: [{config.model_type}, {tags}]
---
# {name}

A `{architecture}` of transformers, pretrained as a masked-language model.

| | |
| --- | --- |
{_rows(facts)}

```python
{usage}
```
"""


def _rows(facts: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    return "\n".join(f"| {cell(fact)} | {cell(value)} |" for fact, value in facts.items())

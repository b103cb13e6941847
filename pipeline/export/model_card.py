"""The README.md of an export."""

from collections.abc import Mapping
from typing import Any


def model_card(name: str, layout: str, mask_token: str, facts: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    rows = "\n".join(f"| {cell(fact)} | {cell(value)} |" for fact, value in facts.items())
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
{rows}

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}", trust_remote_code=True)
print(fill_mask("Fill the {mask_token} in this sentence."))
```

`AutoModelForMaskedLM` scores the `{mask_token}` positions: other rows of its `logits` are zeros unless
their positions are given as `narrow_positions` (or there are labels, or no `{mask_token}` at all). Needs
transformers 5.18 or newer.
"""

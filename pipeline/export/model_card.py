"""The README.md of an export."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """The last measurement of the model on rows that it was not trained on."""

    shards: str
    """Root hash of the folder whose rows they are."""
    loss: float
    """Masked-LM loss, nats."""
    masked_accuracy: float
    """Share of the masked tokens that the model fills in."""


def model_card(
    name: str,
    config: PreTrainedConfig,
    mask_token: str,
    facts: Mapping[str, Any],
    validation: Validation | None = None,
) -> str:
    """Of an export in our own form: the whole masked-LM model, or its encoder, whose results are not the model's."""
    layout = config.layout
    if not (config.architectures or [""])[0].endswith("MaskedLM"):
        return _encoder_card(name, layout, facts)
    front_matter = _front_matter(name, "transformers", "fill-mask", ["narrowbert", "masked-lm"], validation)
    return f"""{front_matter}
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


def _encoder_card(name: str, layout: str, facts: Mapping[str, Any]) -> str:
    """Of the encoder left of ``:`` alone."""
    front_matter = _front_matter(name, "transformers", "feature-extraction", ["narrowbert"], None)
    return f"""{front_matter}
# {name}

An encoder with layout `{layout}`, pretrained as a masked-language model with further layers for the masked positions,
which are left out here. It has no masked-LM head: fine-tune it, or make embeddings with it.

| | |
| --- | --- |
{_rows(facts)}

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
```

Needs transformers 5.18 or newer.
"""


def plain_card(
    name: str,
    config: PreTrainedConfig,
    mask_token: str,
    facts: Mapping[str, Any],
    validation: Validation | None = None,
) -> str:
    """Of an export in a plain form: the whole masked-LM model, or its encoder for embeddings."""
    (architecture,) = config.architectures or [""]
    if architecture.endswith("MaskedLM"):
        library, task, tags = "transformers", "fill-mask", "masked-lm"
        usage = f"""from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}")
print(fill_mask("Fill the {mask_token} in this sentence."))"""
    else:
        library, task, tags = "sentence-transformers", "feature-extraction", "sentence-transformers"
        validation = None  # of a head that this folder leaves out
        usage = f"""from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{name}").encode(["A sentence."])"""
    front_matter = _front_matter(name, library, task, [config.model_type, tags], validation)
    return f"""{front_matter}
# {name}

A `{architecture}` of transformers, pretrained as a masked-language model.

| | |
| --- | --- |
{_rows(facts)}

```python
{usage}
```
"""


def _front_matter(name: str, library: str, task: str, tags: Sequence[str], validation: Validation | None) -> str:
    """What a hub reads: among it the results, in its own form."""
    results = []
    if validation is not None:
        measured = (("loss", "masked-LM loss, nats", validation.loss),)
        measured += (("accuracy", "masked accuracy", validation.masked_accuracy),)
        results = [
            EvalResult(
                task_type="fill-mask", dataset_type=validation.shards, dataset_name="validation rows of the shards",
                metric_type=kind, metric_name=words, metric_value=round(value, 4),
            )
            for kind, words, value in measured
        ]  # fmt: skip
    data = ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=list(tags),
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _rows(facts: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return " ".join(str(value).split()).replace("|", "\\|")

    return "\n".join(f"| {cell(fact)} | {cell(value)} |" for fact, value in facts.items())

"""Small exported models, batches and a tokenizer, for every test of what users do with a model."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel

from pipeline.export import NarrowBertConfig

Model = TypeVar("Model", bound=PreTrainedModel)

HIDDEN, HEADS, INNER, LENGTH, VOCABULARY = 32, 4, 64, 12, 48
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MASK = SPECIAL_IDS["mask"]
NARROW_LAYOUTS = ["2sf:2sf", "1sf 2s:2f", "1sf 1s:1f 2sf"]
LAYOUTS = ["3sf", *NARROW_LAYOUTS]
WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "road", "caf", "##s", "##ing", "##e", "."]
MODERN: dict[str, Any] = {
    "normalization": "pre", "skip_first_norm": True, "position_embedding_type": "rope", "hidden_act": "geglu",
    "bias": False, "layer_norm_eps": 1e-5, "attention_window": 4,
}  # fmt: skip
"""What makes a layout such as 2sfwf a ModernBERT."""


def tiny_config(layout: str, heads: int = HEADS, **options: Any) -> NarrowBertConfig:
    return NarrowBertConfig(
        # Large weights, so that attention is far from uniform and an error cannot hide.
        **{"max_position_embeddings": 16, "initializer_range": 0.3, **options},
        layout=layout,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_attention_heads=heads,
        intermediate_size=INNER,
        pad_token_id=SPECIAL_IDS["pad"],
        cls_token_id=SPECIAL_IDS["cls"],
        sep_token_id=SPECIAL_IDS["sep"],
        mask_token_id=SPECIAL_IDS["mask"],
    )


def shaken(model_class: type[Model], config: NarrowBertConfig, **options: Any) -> Model:
    """A model in evaluation mode whose biases and norms are not 0 and 1: else swaps would go unseen."""
    torch.manual_seed(0)
    model = model_class(config, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids without [MASK], and the padding mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (len(lengths), LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)).long()
    return ids * mask, mask


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def write_tokenizer(path: Path) -> None:
    """A BERT tokenizer of WORDS."""
    special = [f"[{role.upper()}]" for role in SPECIAL_IDS]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL_IDS["cls"]), ("[SEP]", SPECIAL_IDS["sep"])],
    )
    tokenizer.save(str(path))


def write_folder(folder: Path, model_class: type[Any], layout: str = "1sf:2sf", **options: Any) -> Path:
    """A model with a tokenizer beside it, as ``narrowbert export`` and fine-tuning leave them."""
    config = tiny_config(layout, **options)
    config.architectures = [model_class.__name__]
    shaken(model_class, config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": f"[{role.upper()}]" for role in SPECIAL_IDS},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder

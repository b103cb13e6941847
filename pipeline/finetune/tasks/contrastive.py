"""Embeddings of texts, learnt from plain text: a text and itself, seen twice, against the other texts of the batch.

The two views differ by dropout (SimCSE: Gao et al. 2021, arXiv 2104.08821) and, if asked for, by a masked span in one
of them (Mirror-BERT: Liu et al. 2021, arXiv 2104.08027).

Shapes: B texts of a batch, S longest of them in tokens, H hidden.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from data_prep.contract.command_line import UserError
from pipeline.export import NarrowBertModel
from pipeline.export.folder import write_pooling
from pipeline.export.model_folder import open_config
from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.rows import split_name
from pipeline.finetune.tasks.base import Feature, Splits, Task, check_scores, inputs_of, read_numbers


class EmbeddingModel(nn.Module):
    """An encoder whose output is one vector a text; in training, the loss of two views of each."""

    def __init__(self, encoder: PreTrainedModel, pooling: str, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.temperature = temperature

    def embed(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """[B, H]."""
        inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        if self.pooling == "cls" and isinstance(self.encoder, NarrowBertModel):
            return self.encoder.cls_states(**inputs)
        hidden = self.encoder(**inputs).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        real_BS1 = attention_mask.unsqueeze(-1)
        return (hidden * real_BS1).sum(1) / real_BS1.sum(1)

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        other_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """``embeddings`` [B, H]; with ``other_ids``, the second views [B, S], the ``loss`` before it.

        The loss is InfoNCE (van den Oord et al. 2018): cross-entropy of which second view belongs to each first one, by
        cosine / temperature.
        """
        first_BH = self.embed(input_ids, token_type_ids, attention_mask)
        if other_ids is None:
            return {"embeddings": first_BH}
        second_BH = self.embed(other_ids, token_type_ids, attention_mask)
        return {"loss": info_nce(first_BH, second_BH, self.temperature), "embeddings": first_BH}


def info_nce(first_BH: torch.Tensor, second_BH: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding each row of ``first_BH``'s own row among all of ``second_BH``."""
    first_BH, second_BH = (nn.functional.normalize(x.float(), dim=-1) for x in (first_BH, second_BH))
    scores_BB = first_BH @ second_BH.T / temperature
    return nn.functional.cross_entropy(scores_BB, torch.arange(len(scores_BB), device=scores_BB.device))


class ContrastiveTask(Task):
    """Learns from texts alone; measured on pairs of texts with a number that says how alike they are."""

    auto_class = "AutoModel"
    primary_metric = "spearman"

    def __init__(self, config: FinetuneConfig, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> None:
        self.options = config.contrastive
        self.mask_id: Any = tokenizer.mask_token_id
        self.pad = DataCollatorWithPadding(tokenizer)
        self.model_options: dict[str, Any] = {}
        self.scores, self.encodings = {}, {}
        for split, rows in splits.items():
            fields = [config.data.text] if split == "train" else [config.data.text, config.data.second_text]
            texts = [str(row[field]) for field in fields for row in rows]  # all firsts, then all seconds
            self.encodings[split] = (
                tokenizer(texts, truncation=True, max_length=config.training.max_length).encodings or []
            )
            if split == "train":
                if len(set(texts)) < 2:
                    raise UserError(
                        f"{split_name(config, split)} has fewer than two different texts: contrastive compares each "
                        "text with the others of its batch"
                    )
                continue
            self.scores[split] = read_numbers(rows, config, split)
            check_scores(config, split, self.scores[split])

    def wrap(self, model: PreTrainedModel) -> nn.Module:
        """What is trained."""
        return EmbeddingModel(model, self.options.pooling, self.options.temperature)

    def finish(self, folder: Path) -> None:
        """Leave what sentence-transformers reads."""
        write_pooling(folder, open_config(folder, also=("bert",)), self.options.pooling)

    def features(self, split: str) -> list[Feature]:
        def feature(encoding: Encoding) -> Feature:
            return inputs_of(encoding) | ({"other_ids": encoding.ids} if split == "train" else {})

        return [feature(encoding) for encoding in self.encodings[split]]

    def collator(self, features: list[Feature]) -> dict[str, torch.Tensor]:
        """A batch, with the second views in training."""
        batch = dict(self.pad([{k: v for k, v in feature.items() if k != "other_ids"} for feature in features]))
        if "other_ids" in features[0]:
            batch["other_ids"] = self._mask_spans(batch["input_ids"], batch["attention_mask"])
        return batch

    def _mask_spans(self, ids_BS: torch.Tensor, attention_mask_BS: torch.Tensor) -> torch.Tensor:
        """A copy with ``masked_span`` neighbouring tokens of each text masked, [CLS] and [SEP] never."""
        masked_BS = ids_BS.clone()
        for row, length in enumerate(attention_mask_BS.sum(1).tolist()):
            span = min(self.options.masked_span, length - 2)
            start = 1 + int(torch.randint(length - 1 - span, ())) if span > 0 else 0
            masked_BS[row, start : start + max(0, span)] = self.mask_id
        return masked_BS

    def cut(self, split: str) -> int:
        return sum(bool(encoding.overflowing) for encoding in self.encodings[split])

    def metrics(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        from scipy import stats

        first, second = np.split(predictions / np.linalg.norm(predictions, axis=-1, keepdims=True), 2)
        return {"spearman": float(stats.spearmanr((first * second).sum(-1), self.scores[split])[0])}  # pyright: ignore[reportArgumentType]

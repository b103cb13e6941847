"""The exported model behind MLflow's ``pyfunc`` interface. Self-contained: MLflow copies this file with the model.

``model.predict(["the [MASK] sat"])`` fills masks; ``params={"task": "embeddings"}`` gives one vector a text.
"""

import json
from pathlib import Path
from typing import Any

import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from transformers import AutoModelForMaskedLM, AutoTokenizer

TASKS = ("fill-mask", "embeddings")


class NarrowBertPyfunc(PythonModel):
    """Fill-mask and embeddings, on the CPU or the first GPU."""

    def load_context(self, context: Any) -> None:
        """Read the exported folder, artifact ``model``."""
        folder = context.artifacts["model"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)  # else it asks
        self.model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval().to(self.device)
        pooling = Path(folder, "sentence_bert_config.json")  # of --pooling
        settings = json.loads(pooling.read_text(encoding="utf-8")) if pooling.is_file() else {}
        self.takes_cls = settings.get("module_output_name") == "sentence_embedding"

    @torch.no_grad()
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        context: Any,  # noqa: ARG002 - MLflow gives it
        model_input,
        params: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Answer for each text, in order. Texts longer than the model are cut.

        Args:
            context: MLflow's; not used.
            model_input: a table of one column (what MLflow makes of a list of texts). Without a type: MLflow
                would take one for the schema.
            params: ``task``, "fill-mask" or "embeddings"; ``top_k``, guesses for a mask.

        Returns:
            fill-mask: for each text, for each [MASK] in it, ``top_k`` times {"token", "score"}, best first;
            embeddings: for each text the mean of the last hidden states of its tokens, [hidden_size] floats; of a
            model that was exported with ``--pooling cls`` that of its first token.

        Raises:
            ValueError: an unknown task.
        """
        task, top_k = (params or {}).get("task", TASKS[0]), (params or {}).get("top_k", 5)
        if task not in TASKS:
            raise ValueError(f"unknown task '{task}': give one of {', '.join(TASKS)}")
        texts = [str(text) for text in model_input.iloc[:, 0]]
        limit = self.model.config.max_position_embeddings
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        ids = encoded["input_ids"].to(self.device)
        mask = encoded["attention_mask"].to(self.device)
        if task == "embeddings":
            if self.takes_cls:
                return self.model.bert.cls_states(ids, mask).float().tolist()
            hidden = self.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return ((hidden * weights).sum(1) / weights.sum(1)).float().tolist()
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        return [
            [self._best(row[position], top_k) for position in (row_ids == self.tokenizer.mask_token_id).nonzero()[:, 0]]
            for row, row_ids in zip(logits, ids, strict=True)
        ]

    def _best(self, scores: torch.Tensor, top_k: int) -> list[dict[str, Any]]:
        best = scores.float().softmax(-1).topk(min(top_k, scores.shape[-1]))
        tokens = self.tokenizer.convert_ids_to_tokens(best.indices.tolist())
        return [{"token": t, "score": s} for t, s in zip(tokens, best.values.tolist(), strict=True)]


set_model(NarrowBertPyfunc())

"""A tokenizer with RoBERTa's special tokens, from text to a model that transformers fills masks with."""

from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from tests.conftest import write_corpus
from tests.data_prep.tokens.test_other_special_tokens import ROLES, byte_level
from tests.processes import TINY_RUN, run_command


@pytest.mark.long
def test_from_text_to_transformers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    tokenizer = byte_level(tmp_path / "tokenizer.json")
    prep = ["--num_workers", "1", "--seq_length", "32", "--tokenizer", str(tokenizer)]
    corpus = ["--corpus.paths", str(tmp_path / "corpus.jsonl"), "--output", str(tmp_path / "shards")]
    run_command("data_prep", "shards", *corpus, *prep)
    run_command("data_prep", "verify", str(tmp_path / "shards"))
    run = str(tmp_path / "run")
    run_command("pipeline", "train", *TINY_RUN, "--run_dir", run, "--data.path", str(tmp_path / "shards"))
    run_command("pipeline", "export", run, "--output", str(tmp_path / "export"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert {role: getattr(loaded, f"{role}_token") for role in ROLES} == ROLES
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert model.config.mask_token_id == loaded.mask_token_id
    inputs = loaded("the quick brown<mask> jumps", return_tensors="pt")
    assert inputs["input_ids"][0, [0, -1]].tolist() == [loaded.cls_token_id, loaded.sep_token_id]
    masked = inputs["input_ids"] == loaded.mask_token_id
    assert masked.sum() == 1
    assert model(**inputs).logits[masked].isfinite().all()

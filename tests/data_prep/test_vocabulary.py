import hashlib
import json
import os
import subprocess
import sys

import pytest

from data_prep.command_line import UserError
from data_prep.vocabulary import (
    fingerprint,
    load_tokenizer,
    ordinary_ids,
    save_tokenizer,
    special_ids,
    train_wordpiece,
    vocabulary_size,
)

TRAIN = """
import hashlib, sys
from data_prep.corpus import builtin_documents
from data_prep.vocabulary import train_wordpiece
texts = [document.text for document in builtin_documents(150_000)]
tokenizer = train_wordpiece(lambda: texts, size=2000, lowercase=True, min_frequency=2, alphabet_size=500)
print(hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
"""


def trained(texts, size=120, lowercase=True, min_frequency=1, alphabet_size=60):
    return train_wordpiece(
        lambda: texts, size=size, lowercase=lowercase, min_frequency=min_frequency, alphabet_size=alphabet_size
    )


def test_training_is_the_same_for_every_run_and_thread_count():
    # Processes, because the order of the library's hash maps is drawn anew in each.
    hashes = {
        subprocess.run(
            [sys.executable, "-c", TRAIN],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4", "2")
    }
    assert len(hashes) == 1


def test_special_ids_come_first_and_nothing_else_is_added(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    assert special_ids(tokenizer) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert sorted(tokenizer.get_added_tokens_decoder()) == [0, 1, 2, 3, 4]
    assert vocabulary_size(tokenizer) == tokenizer.get_vocab_size() <= 200
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocabulary_size(tokenizer)))


def test_text_goes_there_and_back(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    encoding = tokenizer.encode("The Quick brown houses.")
    assert encoding.tokens[0] == "[CLS]"
    assert encoding.tokens[-1] == "[SEP]"
    assert tokenizer.decode(encoding.ids) == "the quick brown houses."


def test_special_tokens_written_in_the_text_stay_text(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    for encode in (tokenizer.encode_batch, tokenizer.encode_batch_fast):
        ids = encode(["fox [MASK] dog [SEP] [PAD] [CLS]"], add_special_tokens=False)[0].ids
        assert not set(ids) & {0, 2, 3, 4}


def test_case_is_kept_on_request():
    tokenizer = trained(["Fox Fox fox"], lowercase=False)
    assert tokenizer.encode("Fox").ids != tokenizer.encode("fox").ids


def test_rare_characters_fall_outside_a_limited_alphabet():
    tokenizer = trained(["aaaa bbb cc d"], size=20, alphabet_size=3)
    assert tokenizer.token_to_id("d") is None
    assert tokenizer.encode("d", add_special_tokens=False).tokens == ["[UNK]"]


def test_transformers_reads_the_file(tokenizer_file):
    from transformers import PreTrainedTokenizerFast

    text = "seven small wizards"
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    assert theirs(text)["input_ids"] == load_tokenizer(tokenizer_file).encode(text).ids


def test_ordinary_ids_leave_out_special_and_unused(tmp_path):
    tokenizer = trained(["fox dog"])
    content = json.loads(tokenizer.to_str())
    size = len(content["model"]["vocab"])
    content["model"]["vocab"]["[unused7]"] = size
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    assert ordinary_ids(load_tokenizer(path)) == list(range(5, size))


def test_saving_again_is_idempotent_but_never_overwrites_another(tmp_path):
    path = tmp_path / "deep" / "tokenizer.json"
    assert save_tokenizer(trained(["fox dog"]), path)
    assert not save_tokenizer(trained(["fox dog"]), path)
    assert fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="another tokenizer"):
        save_tokenizer(trained(["cat mouse"]), path)


@pytest.mark.parametrize("content", ["{}", "no json", ""])
def test_bad_tokenizer_files(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        load_tokenizer(path)


def test_missing_tokenizer_and_missing_special_tokens(tmp_path):
    with pytest.raises(UserError, match="narrowbert-prep vocab"):
        load_tokenizer(tmp_path / "none.json")
    content = json.loads(trained(["fox dog"]).to_str())
    content["added_tokens"] = content["added_tokens"][:4]
    del content["model"]["vocab"]["[MASK]"]
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks \[MASK\]"):
        load_tokenizer(tmp_path / "t.json")


def test_vocabulary_too_small_or_no_text():
    with pytest.raises(UserError, match=r"vocabulary\.size"):
        trained(["abcdefghijklmnopqrstuvwxyz"], size=32)
    with pytest.raises(UserError, match="no text"):
        trained([" "])

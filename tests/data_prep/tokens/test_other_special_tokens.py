"""Tokenizers whose special tokens have other names: those of RoBERTa, XLM-RoBERTa and ALBERT."""

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from data_prep.contract.command_line import UserError
from data_prep.contract.shards import open_shards
from data_prep.contract.tokenizer import SPECIAL_TOKENS, load_tokenizer, ordinary_ids, special_ids
from data_prep.report.rows_as_text import rows_as_text
from data_prep.stages.build import build_shards
from tests.data_prep.conftest import PANGRAM, no_progress

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ALBERT = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
ROLES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


def byte_level(path, names=ROBERTA, framed=True):
    """As RoBERTa's tokenizer.json is built."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PANGRAM] * 5, trainer)
    if "<mask>" in names:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    if framed:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    tokenizer.save(str(path))
    return path


def unigram(path, names=ROBERTA):
    """As the tokenizer.json of XLM-RoBERTa, and of ALBERT, is built."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unk = next(name for name in names if "unk" in name)
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=names, unk_token=unk, show_progress=False)
    tokenizer.train_from_iterator([PANGRAM] * 5, trainer)
    cls, sep = ("<s>", "</s>") if "<s>" in names else ("[CLS]", "[SEP]")
    frame = [(cls, tokenizer.token_to_id(cls)), (sep, tokenizer.token_to_id(sep))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} {sep} $B {sep}", special_tokens=frame
    )
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("make", [byte_level, unigram])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_shards_have_the_tokenizers_own_names(tiny_config, tmp_path, make, unit):
    path = make(tmp_path / "tokenizer.json")
    mask = replace(tiny_config.mask, unit=unit)
    config = replace(tiny_config, output=str(tmp_path / "shards"), tokenizer=str(path), mask=mask)
    build_shards(config, no_progress)
    folder = open_shards(tmp_path / "shards")
    tokenizer = load_tokenizer(path)
    assert {role: tokenizer.id_to_token(number) for role, number in folder.special_ids.items()} == ROLES
    arrays = folder.split("train").chunk(0)
    rows, lengths = np.arange(len(arrays["lengths"])), arrays["lengths"].astype(int)
    assert set(arrays["input_ids"][:, 0]) == {tokenizer.token_to_id("<s>")}
    assert set(arrays["input_ids"][rows, lengths - 1]) == {tokenizer.token_to_id("</s>")}
    replaced = set(arrays["replacement_ids"][0, :, : arrays["num_masked"].min()].ravel())
    assert tokenizer.token_to_id("<mask>") in replaced
    special = {tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<pad>", "<unk>")}
    assert not special & set(ordinary_ids(tokenizer))
    assert "<mask>" in " ".join(rows_as_text(folder, "train", 2, 0))
    assert '<mark class="mask">' in (tmp_path / "shards" / "report.html").read_text()


@pytest.mark.parametrize(("make", "names", "expected"), [(unigram, ALBERT, dict(zip(ROLES, ALBERT, strict=True)))])
def test_names_may_be_mixed(tmp_path, make, names, expected):
    tokenizer = load_tokenizer(make(tmp_path / "tokenizer.json", names))
    assert {role: tokenizer.id_to_token(number) for role, number in special_ids(tokenizer).items()} == expected


def test_a_vocabulary_with_all_of_berts_names_is_a_berts(tokenizer_file, tmp_path):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_special_tokens([*ROLES.values()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    assert {role: found.id_to_token(number) for role, number in special_ids(found).items()} == SPECIAL_TOKENS


def test_what_has_no_mask_or_frames_no_text_is_refused(tmp_path):
    path = byte_level(tmp_path / "gpt.json", ["<s>", "<pad>", "</s>", "<unk>"])
    with pytest.raises(UserError, match=r"lacks \[MASK\] or <mask>: that of a BERT, a RoBERTa or their like has all"):
        load_tokenizer(path)
    path = byte_level(tmp_path / "bare.json", framed=False)
    with pytest.raises(UserError, match=r"does not put <s> before and </s> after a text"):
        load_tokenizer(path)


@pytest.mark.parametrize("name", ["madeupword0001", "<s>NOTUSED", "</s>NOTUSED", "[unused7]"])
def test_ids_that_only_take_up_room_replace_nothing(name):
    tokenizer = Tokenizer(
        models.WordLevel({**{token: i for i, token in enumerate(ROBERTA)}, name: 5, "word": 6}, "<unk>")
    )
    assert ordinary_ids(tokenizer) == [6]

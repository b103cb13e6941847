import hashlib
import json
import os
import pydoc_data.topics
import string
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_prep.config import VocabularyConfig
from data_prep.contract.command_line import UserError
from data_prep.contract.text.normalizers import normalizer
from data_prep.contract.tokenizer import (
    SPECIAL_TOKENS,
    continues_word,
    load_tokenizer,
    ordinary_ids,
    save_tokenizer,
    special_ids,
    tokenizer_hash,
    vocabulary_size,
)
from data_prep.corpus.cleaning import clean
from data_prep.tokens.vocabulary import count_characters, train_tokenizer
from tests.data_prep.tokens.languages import SAMPLES

MODELS = ("wordpiece", "bpe", "unigram")

# English text, and words that occur once or twice: ties are what makes trainers differ.
TRAIN = """
import hashlib, pydoc_data.topics, sys
from data_prep.config import VocabularyConfig
from data_prep.tokens.vocabulary import train_tokenizer
texts = [text[:4000] for _, text in sorted(pydoc_data.topics.topics.items())][:40]
texts += [f"{'xyz'[n % 3]}{n * n:x}q" for n in range(2000)]
for model in ("wordpiece", "bpe", "unigram"):
    tokenizer = train_tokenizer(lambda: texts, VocabularyConfig(model=model, size=1000, alphabet_size=80))
    print(model, hashlib.sha256(tokenizer.to_str().encode()).hexdigest())
"""


def trained(texts, **config):
    config = {"size": 120, "min_frequency": 1, "alphabet_size": 60, **config}
    return train_tokenizer(lambda: texts, VocabularyConfig(**config))


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(
        trained(["the quick brown fox jumps over a lazy dog's houses. seven small wizards"] * 3, size=200), path
    )
    return path


@pytest.fixture(scope="module", params=MODELS)
def english(request, tmp_path_factory):
    """A tokenizer of each model, trained on the help texts of Python."""
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    texts = [text[:4000] for _, text in sorted(pydoc_data.topics.topics.items())][:40]
    save_tokenizer(trained(texts, model=request.param, size=1000, alphabet_size=80), path)
    return load_tokenizer(path)


@pytest.mark.slow
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


def test_every_model_has_our_special_tokens_first_and_frames_texts(english):
    assert special_ids(english) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert sorted(english.get_added_tokens_decoder()) == [0, 1, 2, 3, 4]
    assert sorted(english.get_vocab().values()) == list(range(vocabulary_size(english)))
    assert vocabulary_size(english) == 1000
    assert ordinary_ids(english) == list(range(5, 1000))
    encoding = english.encode("Python's functions are objects", "and so are classes")
    assert encoding.tokens[0] == "[CLS]"
    assert [encoding.ids.count(3), encoding.ids[-1]] == [2, 3]
    assert encoding.type_ids == sorted(encoding.type_ids)
    assert sum(encoding.type_ids) > 1
    ids = english.encode("fox [MASK] dog [SEP] [PAD] [CLS]", add_special_tokens=False).ids
    assert not set(ids) & {0, 2, 3, 4}


def test_every_model_gives_its_text_back(english):
    ids = english.encode("The functions of objects, \t are ordinary.").ids
    text = " ".join(english.decode(ids).split())
    assert text.replace(" ,", ",").replace(" .", ".") == "the functions of objects, are ordinary."


@pytest.fixture(scope="module")
def cased_bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    save_tokenizer(trained(["Fox fox"], model="bpe", size=300, lowercase=False), path)
    return load_tokenizer(path)


@given(text=st.text(max_size=40).map(clean))
def test_byte_level_tokens_hold_any_text(cased_bpe, text):
    ids = cased_bpe.encode(text, add_special_tokens=False).ids
    assert 1 not in ids
    assert cased_bpe.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("config", "same", "different"),
    [
        ({"lowercase": True}, [("FOX", "fox"), ("r\u00e9e", "ree")], []),
        ({"lowercase": False}, [], [("FOX", "fox"), ("r\u00e9e", "ree")]),
        ({"lowercase": True, "strip_accents": False}, [("FOX", "fox")], [("r\u00e9e", "ree")]),
        ({"lowercase": False, "strip_accents": True}, [("r\u00e9e", "ree")], [("FOX", "fox")]),
    ],
)
def test_case_and_accents(model, config, same, different):
    tokenizer = trained(["Fox FOX fox r\u00e9e ree"], model=model, size=300, **config)
    for one, other in same:
        assert tokenizer.encode(one).ids == tokenizer.encode(other).ids
    for one, other in different:
        assert tokenizer.encode(one).ids != tokenizer.encode(other).ids


def test_rare_characters_fall_outside_a_limited_alphabet():
    tokenizer = trained(["aaaa bbb cc d"], size=20, alphabet_size=3)
    assert tokenizer.token_to_id("d") is None
    assert tokenizer.encode("d", add_special_tokens=False).tokens == ["[UNK]"]
    unigram = trained(["aaaa bbb cc d"], model="unigram", size=20, alphabet_size=3)
    assert set("".join(unigram.get_vocab())) & set("abcd") >= set("abc")
    assert unigram.token_to_id("d") is None
    assert unigram.encode("ad", add_special_tokens=False).ids[-1] == 1


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
    assert tokenizer_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
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


@given(
    texts=st.lists(st.text(max_size=30) | st.text(alphabet="aÉ \n\u0301\u200d\u3000नि東", max_size=20), max_size=4),
    model=st.sampled_from(["wordpiece", "unigram"]),
    lowercase=st.booleans(),
)
def test_characters_are_those_of_the_normalised_texts(texts, model, lowercase):
    config = VocabularyConfig(model=model, lowercase=lowercase)
    texts = [clean(text) for text in [*texts, *SAMPLES.values()]]
    whole = normalizer(config)  # what the tokenizer of an export does
    expected = Counter(c for text in texts for c in whole.normalize_str(text) if not c.isspace())
    assert count_characters(texts, config) == expected


@pytest.mark.parametrize("model", MODELS)
def test_vocabulary_too_small_or_no_text(model):
    with pytest.raises(UserError, match=r"vocabulary\.size 25 has no room"):
        trained([string.ascii_lowercase], model=model, size=25)
    with pytest.raises(UserError, match="no text"):
        trained([" "], model=model, size=300)


PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,'!?-#$[]()\u00e9\u00df\u4e1c\u2603\u0130\u0308"})
WORDS = ["the", "un", "##able", "##s", "house", "it", "##ing", "na", "##ive", "mask", "cls"]
NASTY = [
    "",
    " \t\r\n ",
    "The naïve HOUSES' Unables!",
    "zero\u200bwidth soft\u00adhyphen nul\x00byte bell\x07 line\u2028sep nbsp\u00a0x \x1c y \x85 z",
    "東京 東house the東",
    "e\u0301 \u0130stanbul STRASSE ß ẞ ﬁ",
    "a" * 101 + " " + "a" * 100,
    "[UNK [ MASK ] [mask]",
    "☃☃ \U0001f600\u200d\U0001f525 \ufeffthe",
    "\u0627\u0644\u0639 \u202ethe",
]


@pytest.fixture(scope="module")
def vocabulary_folders(tmp_path_factory):
    """Whether lower-cased -> folder with a vocab.txt and what transformers makes of it."""
    from transformers import BertTokenizerFast

    folders = {}
    for lowercase in (True, False):
        folder = tmp_path_factory.mktemp("vocab")
        upper = [] if lowercase else ["A", "T", "##H", "The", "\u00c9"]
        lines = [*PIECES, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS, *upper, "the"]  # "the" twice
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        folders[lowercase] = (
            folder,
            {
                strip: BertTokenizerFast.from_pretrained(folder, do_lower_case=lowercase, strip_accents=strip)
                for strip in (None, True, False)
            },
        )
    return folders


@given(
    text=st.sampled_from(NASTY) | st.text(max_size=60) | st.text(alphabet="aThés ##.[]\u0301東", max_size=40),
    lowercase=st.booleans(),
    strip_accents=st.sampled_from([None, True, False]),
)
def test_a_vocabulary_file_encodes_as_transformers_does(vocabulary_folders, text, lowercase, strip_accents):
    assume(not any(token in text for token in SPECIAL_TOKENS.values()))
    folder, theirs = vocabulary_folders[lowercase]
    config = VocabularyConfig(lowercase=lowercase, strip_accents=strip_accents)
    mine = load_tokenizer(folder / "vocab.txt", config)
    assert mine.encode(text).ids == theirs[strip_accents](text)["input_ids"]


def test_a_vocabulary_file_is_read_as_it_stands(vocabulary_folders):
    folder, _ = vocabulary_folders[True]
    tokenizer = load_tokenizer(folder / "vocab.txt")
    assert special_ids(tokenizer) == {"pad": 0, "unk": 2, "cls": 3, "sep": 4, "mask": 5}
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokenizer.token_to_id("the") == len(lines) - 1
    assert vocabulary_size(tokenizer) == len(lines)
    assert not set(ordinary_ids(tokenizer)) & {0, 1, 2, 3, 4, 5, lines.index("the")}
    ids = tokenizer.encode("[MASK] the [SEP]", add_special_tokens=False).ids
    assert not set(ids) & {0, 3, 4, 5}


def test_a_vocabulary_file_with_windows_line_ends(vocabulary_folders, tmp_path):
    folder, _ = vocabulary_folders[True]
    content = (folder / "vocab.txt").read_bytes()
    (tmp_path / "windows.txt").write_bytes(content.replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert load_tokenizer(tmp_path / "windows.txt").to_str() == load_tokenizer(folder / "vocab.txt").to_str()


def test_a_vocabulary_file_of_the_other_case_is_refused(vocabulary_folders):
    for lowercase in (True, False):
        path = vocabulary_folders[lowercase][0] / "vocab.txt"
        with pytest.raises(UserError, match=f"set it to {str(lowercase).lower()}"):
            load_tokenizer(path, VocabularyConfig(lowercase=not lowercase))


def test_bad_vocabulary_files(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"[PAD]\n\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(path)
    for content in ("", "[PAD]\n[UNK]\n[CLS]\nthe"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"lacks .*\[SEP\] \[MASK\]"):
            load_tokenizer(path)


def grouped(tokenizer, text):
    """The text's tokens with those that continue a word joined to the ones before."""
    continues = continues_word(tokenizer)
    words = []
    encoding = tokenizer.encode(text, add_special_tokens=False)
    for number, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if continues[number] and words:
            words[-1] = (words[-1][0], max(end, words[-1][1]))
        else:
            words.append((begin, end))
    return [text[begin:end].strip() for begin, end in words if text[begin:end].strip()]


def test_tokens_of_a_word_are_grouped(english):
    text = "unhappily reorganised functions, 2024 hyperobjects."
    expected = ["unhappily", "reorganised", "functions", ",", "2024", "hyperobjects", "."]
    assert grouped(english, text) == expected


def test_special_tokens_continue_nothing(english):
    continues = continues_word(english)
    assert continues.shape == (vocabulary_size(english),)
    assert continues.dtype == bool
    assert not continues[:5].any()
    assert 0 < continues.sum() < len(continues)


def test_wordpiece_says_itself_what_continues():
    tokenizer = trained(["fox dogs"])
    continues = continues_word(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        assert continues[number] == token.startswith("##")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("東京 is big", ["東", "京", "is", "big"]),  # ideographs stand alone, even in pieces of bytes
        ("na\u00efve Стол", ["na\u00efve", "Стол"]),
        ("😀😀 ok", ["😀", "😀", "ok"]),
        ("don't", ["don", "'t"]),
    ],
)
def test_words_of_bytes(cased_bpe, text, words):
    assert grouped(cased_bpe, text) == words


def test_letters_continue_and_ideographs_do_not():
    tokenizer = trained(["東京 京都 都東 xy yx"], model="unigram", size=30)
    continues = continues_word(tokenizer)
    assert {t for t in tokenizer.get_vocab() if len(t) == 1 and continues[tokenizer.token_to_id(t)]} == {"x", "y"}
    assert {"東", "京", "都"} <= set(tokenizer.get_vocab())


def test_a_vocabulary_that_does_not_tell_words_is_refused():
    content = json.loads(trained(["fox"], model="bpe", size=300).to_str())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    from tokenizers import Tokenizer

    with pytest.raises(UserError, match=r"set mask\.unit to token"):
        continues_word(Tokenizer.from_str(json.dumps(content)))

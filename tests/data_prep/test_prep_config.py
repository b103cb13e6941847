import subprocess
import sys
from dataclasses import replace

import pytest

from data_prep.config import (
    CorpusConfig,
    MaskConfig,
    PrepConfig,
    VocabularyConfig,
    check_config,
    chunk_rows,
    masked_per_row,
    tokenizer_path,
)
from data_prep.contract.command_line import UserError

DEFAULT = PrepConfig(output="shards")


def test_defaults_pass_and_resolve():
    check_config(DEFAULT)
    assert masked_per_row(DEFAULT) == 19
    assert chunk_rows(DEFAULT) == 1024
    assert chunk_rows(replace(DEFAULT, seq_length=512)) == 256
    assert tokenizer_path(replace(DEFAULT, output="a/b/")) == "a/b.tokenizer.json"
    assert tokenizer_path(replace(DEFAULT, tokenizer="t.json")) == "t.json"
    assert masked_per_row(replace(DEFAULT, mask=MaskConfig(per_row=20))) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 4}, "seq_length is 4"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"mask": MaskConfig(probability=1.5)}, r"mask\.probability"),
        ({"mask": MaskConfig(per_row=127)}, r"expected 1 to 126"),
        ({"mask": MaskConfig(probability=0.001)}, r"mask\.per_row"),
        ({"mask": MaskConfig(variants=0)}, r"mask\.variants"),
        ({"rows_per_shard": 3000}, r"nearest that fits is 3072"),
        ({"vocabulary": VocabularyConfig(size=5)}, r"vocabulary\.size"),
        ({"corpus": CorpusConfig(builtin_max_bytes=0)}, "builtin_max_bytes"),
        ({"num_workers": -1}, "num_workers"),
        ({"seed": -1}, "seed"),
    ],
)
def test_senseless_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(replace(DEFAULT, **changes))


def test_configuration_needs_no_heavy_library():
    code = "import sys, data_prep.config; sys.exit(any(m in sys.modules for m in ('numpy', 'tokenizers', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

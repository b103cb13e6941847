"""Shards without masks: the reader draws what other shards store."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from data_prep import __main__ as command
from data_prep.config import MaskConfig
from data_prep.contract.shard_format import MASK_FIELDS, SPLITS
from data_prep.contract.shards import open_shards
from data_prep.stages.build import build_shards
from data_prep.verification.folder import verify
from tests.data_prep.conftest import no_progress


@pytest.fixture(scope="module", params=["token", "span"])
def both(request, tiny_config, tmp_path_factory):
    """The same corpus with its masks stored, and without."""
    folder = tmp_path_factory.mktemp("both")
    for name, stored in (("with", True), ("without", False)):
        mask = MaskConfig(variants=3, unit=request.param, stored=stored)
        build_shards(replace(tiny_config, output=str(folder / name), mask=mask), no_progress)
    return folder / "with", folder / "without"


def test_masks_are_those_that_are_stored_to_the_bit(both):
    stored, drawn = map(open_shards, both)
    for name in SPLITS:
        ours, theirs = pickle.loads(pickle.dumps(drawn.split(name))), stored.split(name)
        assert len(ours.chunk_rows) == len(theirs.chunk_rows) > 0
        for index, rows in enumerate(theirs.chunk_rows):
            arrays, expected = ours.chunk(index), theirs.chunk(index)
            assert set(expected) - set(arrays) == set(MASK_FIELDS)
            for field, array in arrays.items():
                np.testing.assert_array_equal(array, expected[field])
            picked, variants = np.tile(np.arange(rows), 3), np.repeat(np.arange(3), rows)
            masks = ours.masks(np.full(len(picked), index), picked, variants)
            for field, array in theirs.masks(np.full(len(picked), index), picked, variants).items():
                assert masks[field].dtype == array.dtype
                np.testing.assert_array_equal(masks[field], array)
                np.testing.assert_array_equal(array, expected[field][picked, variants])


def test_the_folder_is_sound_smaller_and_says_so(both, capsys):
    stored, drawn = map(open_shards, both)
    assert verify(both[1]).problems == ()
    assert drawn.manifest["masks_stored"] is False
    assert drawn.manifest["statistics"] == stored.manifest["statistics"]
    # A chunk of 16 rows of 32 tokens, of 2 bytes; 3 masks of 5 tokens take 66 bytes a row.
    lengths = [folder.indexes["train"].columns["chunk_lengths"] for folder in (stored, drawn)]
    assert lengths[0][0] - lengths[1][0] > 16 * 66
    shown = []
    for folder in both:
        assert command.main(["inspect", str(folder), "--rows", "9", "--variant", "1"]) == 0
        shown.append(capsys.readouterr().out.split("\n", 1)[1])
    assert shown[0] == shown[1]


def test_folders_with_stored_masks_are_of_the_same_configuration_as_before(both):
    assert "stored" not in open_shards(both[0]).manifest["configuration"]["mask"]

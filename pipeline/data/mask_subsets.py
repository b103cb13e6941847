"""Some of a row's masked positions: those that a step of a lower mask rate uses. The others keep their token.

The masks of a row and variant are put in an order that is drawn by a counter-based generator, keyed on seed, sequence
id and variant, and the first ones are taken. So a subset follows from those three numbers and the rate alone: neither
processes nor resumes nor the order of the rows have part in it, and the subset of a lower rate lies in that of a
higher one.

Words stay whole where the shards mask words: they are drawn as one, and the first that has no room ends the subset.
Of spans and n-grams those that touch are drawn together, and are cut between words alone.

Shapes: B rows, S tokens of a row, P masked positions of a row in the shards, M of them that are taken.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.contract.masking.random_streams import GAMMA, mix, stream_keys
from data_prep.contract.shards import ShardFolder

SUBSET_DRAWS = 3 << 16
"""Draw p + this orders position p among the row's masked ones; the draws below are those that the masks come from."""


class MaskSubsets:
    """Takes subsets of the masks of several folders.

    Args:
        folders: of a mixture; they share one tokenizer.
        seed: what the draws are keyed on, beside the rows.
    """

    def __init__(self, folders: Sequence[ShardFolder], seed: int) -> None:
        self._folders, self._seed = folders, seed
        units = [folder.mask_unit for folder in folders]
        self._by_word = np.array([unit != "token" for unit in units])
        self._by_run = np.array([unit in ("span", "ngram") for unit in units])

    @functools.cached_property
    def _continues_word(self) -> np.ndarray:
        """[vocabulary] bool."""
        from data_prep.contract.tokenizer import continues_word, load_tokenizer  # which only this needs

        return continues_word(load_tokenizer(self._folders[0].tokenizer_path))

    def take(
        self, fields: Mapping[str, np.ndarray], folders: np.ndarray, variants: np.ndarray, masked_per_row: int
    ) -> dict[str, np.ndarray]:
        """Masks of rows with M of P slots.

        A full row keeps ``masked_per_row`` positions and a short one the same share of its own, rounded, at least one;
        fewer where the next word has no room.

        Args:
            fields: input_ids [B, S] without masks, sequence_ids [B], and the masks of ``ShardSplit.masks``.
            folders: [B] which folder each row is of.
            variants: [B] the mask variant of each.
            masked_per_row: M.

        Returns:
            masked_positions [B, M], replacement_ids [B, M] and num_masked [B], laid out as the shards' own.
        """
        positions = fields["masked_positions"].astype(np.int64)
        num_masked = fields["num_masked"].astype(np.int64)
        slots = np.arange(positions.shape[1])
        is_used = slots < num_masked[:, None]
        words, groups = self._starts(fields["input_ids"], positions, is_used, folders)
        draws = self._draws(fields["sequence_ids"], variants, positions)
        first_of_group = np.maximum.accumulate(np.where(groups, slots, 0), axis=1)
        draws = np.take_along_axis(draws, first_of_group, axis=1)
        draws[~is_used] = np.iinfo(np.uint64).max
        order = np.argsort(draws, axis=1, kind="stable")
        counts = _counts(num_masked, positions.shape[1], masked_per_row)
        kept = np.zeros_like(is_used)
        np.put_along_axis(kept, order, _fits(np.take_along_axis(words, order, axis=1), counts), axis=1)

        chosen = np.argsort(~kept, axis=1, kind="stable")[:, :masked_per_row]
        num_kept = kept.sum(axis=1)
        is_kept = np.arange(masked_per_row) < num_kept[:, None]
        return {
            "masked_positions": np.where(is_kept, np.take_along_axis(positions, chosen, axis=1), 0),
            "replacement_ids": np.take_along_axis(fields["replacement_ids"], chosen, axis=1),
            "num_masked": num_kept,
        }

    def _draws(self, sequence_ids: np.ndarray, variants: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """[B, P] u64, one number for each masked position."""
        keys = stream_keys(self._seed, sequence_ids, variants)[:, None]
        return mix(keys + (positions.astype(np.uint64) + np.uint64(SUBSET_DRAWS + 1)) * GAMMA)

    def _starts(
        self, input_ids: np.ndarray, positions: np.ndarray, is_used: np.ndarray, folders: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether a word begins at a slot, and whether what is drawn together does; both [B, P] bool."""
        words = np.ones_like(is_used)
        if not self._by_word.any():
            return words, words
        touches = np.zeros_like(is_used)
        touches[:, 1:] = (np.diff(positions, axis=1) == 1) & is_used[:, 1:]
        continues = self._continues_word[np.take_along_axis(input_ids, positions, axis=1)]
        words = ~(touches & continues & self._by_word[folders][:, None])
        return words, words & ~(touches & self._by_run[folders][:, None])


def _counts(num_masked: np.ndarray, slots: int, masked_per_row: int) -> np.ndarray:
    """[B] positions to take of ``num_masked``, [B], where ``masked_per_row`` of ``slots`` are wanted."""
    share = (2 * num_masked * masked_per_row + slots) // (2 * slots)  # rounded, in whole numbers
    return np.minimum(np.clip(share, 1, masked_per_row), num_masked)


def _fits(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[B, P] which slots, in drawn order, are taken: whole words as long as there is room, never more than ``counts``.

    Args:
        words: [B, P] whether a word begins there; unused slots, which come last, count as words.
        counts: [B].
    """
    num_slots = words.shape[1]
    ends = np.full(words.shape, num_slots)  # how many slots there are up to the end of this word
    ends[:, :-1] = np.where(words[:, 1:], np.arange(1, num_slots), num_slots)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    is_first = ends == ends[:, :1]  # a word that is alone too long is cut: a row of no masks would teach nothing
    return (ends <= counts[:, None]) | (is_first & (np.arange(num_slots) < counts[:, None]))

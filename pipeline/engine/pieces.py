"""Whole tensors out of the equal slices in which ZeRO 1 and 2 hold them, and back."""

import torch
import torch.distributed as dist


class Pieces:
    """Which piece of which tensor a rank holds, and which rank gets a tensor whole.

    Args:
        sizes: elements of each tensor. One after the other they are cut into equal slices; the end is padded.
        slice_size: elements of a slice; rank ``r`` holds the one that begins at ``r * slice_size``.
        costs: of what is done with each whole tensor, by which the tensors are spread over the ranks.
        group: the ranks; None: all.
    """

    def __init__(self, sizes: list[int], slice_size: int, costs: list[int], group: dist.ProcessGroup | None) -> None:
        self._sizes, self._slice_size, self._group = sizes, slice_size, group
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._rank, self._ranks = dist.get_rank(group), range(dist.get_world_size(group))
        self._owned = _spread(costs, len(self._ranks))
        # Worked out once: every step sends the same pieces.
        self._places = [self._place(index) for index in range(len(sizes))]
        self._of_mine = [[self._length(rank, index) for index in self.mine] for rank in self._ranks]
        self._of_owners = [[self._length(self._rank, index) for index in owned] for owned in self._owned]

    @property
    def mine(self) -> list[int]:
        """Numbers of the tensors that this rank gets whole."""
        return self._owned[self._rank]

    def collect(self, held: torch.Tensor) -> list[torch.Tensor]:
        """Exchange pieces, which every rank of the group does. Returns the tensors of ``mine``, flat.

        Args:
            held: this rank's slice.
        """
        outgoing = [[held[self._places[index]] for index in owned] for owned in self._owned]
        pieces = self._exchange(outgoing, self._of_mine, like=held)
        return [torch.cat([pieces[rank][number] for rank in self._ranks]) for number in range(len(self.mine))]

    def give_back(self, whole: list[torch.Tensor], held: torch.Tensor) -> torch.Tensor:
        """The inverse of ``collect``.

        Args:
            whole: the tensors of ``mine``, flat.
            held: written to and returned; padding stays as it is.
        """
        cut = [tensor.split([of_rank[n] for of_rank in self._of_mine]) for n, tensor in enumerate(whole)]
        outgoing = [[pieces[rank] for pieces in cut] for rank in self._ranks]
        incoming = self._exchange(outgoing, self._of_owners, like=held)
        for owned, pieces in zip(self._owned, incoming, strict=True):
            for index, piece in zip(owned, pieces, strict=True):
                held[self._places[index]] = piece
        return held

    def _length(self, rank: int, index: int) -> int:
        """Elements of a tensor in the slice of a rank."""
        first, last = rank * self._slice_size, (rank + 1) * self._slice_size
        start = self._starts[index]
        return max(0, min(start + self._sizes[index], last) - max(start, first))

    def _place(self, index: int) -> slice:
        """Where in this rank's slice its piece of a tensor is."""
        start = max(0, self._starts[index] - self._rank * self._slice_size)
        return slice(start, start + self._length(self._rank, index))

    def _exchange(
        self, outgoing: list[list[torch.Tensor]], lengths: list[list[int]], like: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        """Send pieces to each rank; those of each rank, of which the lengths are known."""
        if len(self._ranks) == 1:
            return outgoing
        sent = [sum(piece.numel() for piece in pieces) for pieces in outgoing]
        totals = [sum(of_rank) for of_rank in lengths]
        received = like.new_empty(sum(totals))
        flat = torch.cat([like.new_empty(0), *(piece for pieces in outgoing for piece in pieces)])
        dist.all_to_all_single(received, flat, totals, sent, group=self._group)
        return [list(part.split(of_rank)) for part, of_rank in zip(received.split(totals), lengths, strict=True)]


def _spread(costs: list[int], num_ranks: int) -> list[list[int]]:
    """Numbers of the tensors of each rank: the costliest first, each to the rank with the least to do."""
    load = [0] * num_ranks
    owned: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = load.index(min(load))
        load[rank] += costs[index]
        owned[rank].append(index)
    return [sorted(indices) for indices in owned]

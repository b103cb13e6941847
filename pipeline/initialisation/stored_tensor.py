"""One tensor of a checkpoint on disk."""

import dataclasses
from pathlib import Path

import torch
from safetensors import safe_open


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """What is known of it before it is read."""

    path: Path
    """The file."""
    key: str
    """Its name there."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: str
    """safetensors' name of its type."""
    first_row: int | None = None
    """Where it begins in a tensor that packs several; None: that is the whole."""
    is_zero: bool = False
    """Whether it is zeros, which the checkpoint leaves out."""

    def read(self) -> torch.Tensor:
        """The tensor in fp32."""
        if self.is_zero:
            return torch.zeros(self.shape)
        with safe_open(self.path, framework="pt") as file:
            if self.first_row is None:
                return file.get_tensor(self.key).float()
            return file.get_slice(self.key)[self.first_row : self.first_row + self.shape[0]].float()

"""The linear code that the autoencoder is compared with: principal components of training poses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import DataError, UsageError

__all__ = ["PoseBasis"]


class PoseBasis(nn.Module):
    """CNN-PCA's code (sec. 5.3): c = U^T (y - mean), the ``components`` largest directions.

    Args:
        in_features: P, the length of a pose.
        components: k.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, in_features: int, components: int) -> None:
        super().__init__()
        if not 1 <= components <= in_features:
            raise UsageError(
                f"latent: {components} principal components; a pose has 1 to {in_features}"
            )
        self.latent_features = components
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("basis", torch.eye(in_features)[:components])

    @torch.no_grad()
    def fit(self, poses: Tensor) -> None:
        """Mean and directions of (N, P) complete poses.

        Raises:
            DataError: fewer than two poses.
        """
        if len(poses) < 2:
            raise DataError(
                f"latent: {len(poses)} training poses with all joints; principal components need "
                "two or more"
            )
        exact = poses.double()
        mean = exact.mean(dim=0)
        _, vectors = torch.linalg.eigh((exact - mean).T @ (exact - mean) / len(exact))
        basis = vectors.flip(1).T[: self.latent_features]
        # A direction's sign is arbitrary: its largest entry is made positive.
        largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(basis * largest.sign())

    def encode(self, y: Tensor) -> Tensor:
        """(..., P) -> (..., k)."""
        return (y - self.mean) @ self.basis.T

    def decode(self, c: Tensor) -> Tensor:
        """(..., k) -> (..., P)."""
        return self.mean + c @ self.basis

    def decoder_weights(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of the one linear layer back to the pose."""
        return [(self.basis.T, self.mean)]

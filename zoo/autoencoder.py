"""A tied-weight denoising autoencoder with a contractive penalty, of any depth.

The pose autoencoder of Katircioglu, Tekin, Salzmann, Lepetit, Fua, "Learning Latent Representations
of 3D Human Pose with Deep Neural Networks", IJCV 2018 (sec. 3.1, Eq. 1-2), for any vectors::

    autoencoder = TiedAutoencoder(51, [300, 300])
    loss = autoencoder.loss(clean, noise_std=40.0, contractive=0.1)      # the whole, Eq. 2
    loss = autoencoder.layer_loss(0, clean, noise_std=40.0, contractive=0.1)  # greedy, layer 1
    codes = autoencoder.encode(clean)                                    # h_L
    decoder = LinearDecoder.of(autoencoder)                              # untied copy, to fine-tune

Layer j has one matrix W_j for both directions: there is nothing to keep equal, in training, saving
or loading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import UsageError

__all__ = ["LinearDecoder", "TiedAutoencoder", "TiedLayer"]


class TiedLayer(nn.Module):
    """h = ReLU(W x + b) and back, x^ = W^T h + c.

    Args:
        in_features: length of x.
        out_features: length of h.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.encoder_bias = nn.Parameter(torch.zeros(out_features))
        self.decoder_bias = nn.Parameter(torch.zeros(in_features))
        # Half of the units are active. With this variance W^T ReLU(W x) starts about as long as x,
        # whichever side is the wider one.
        nn.init.normal_(self.weight, std=math.sqrt(2.0 / max(in_features, out_features)))

    def encode(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), Eq. 1."""
        return functional.relu(functional.linear(x, self.weight, self.encoder_bias))

    def decode(self, h: Tensor) -> Tensor:
        """(..., out) -> (..., in), linear: coordinates have both signs."""
        return functional.linear(h, self.weight.t(), self.decoder_bias)


class TiedAutoencoder(nn.Module):
    """L tied layers: encoder with ReLU, linear decoder, ``W_dec,j = W_enc,j^T``.

    Args:
        in_features: length of the vectors, 51 for 17 joints.
        hidden: widths of the layers; the last one is the latent dimension.
        hidden_relu: a ReLU between the decoder's layers too. The paper's text has none; its decoder
            is then one affine map.

    Raises:
        UsageError: no layer, or a width below 1.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (300, 300), hidden_relu: bool = False
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise UsageError(f"autoencoder layers {list(hidden)}: give one or more widths above 0")
        self.in_features, self.hidden, self.hidden_relu = in_features, list(hidden), hidden_relu
        widths = [in_features, *hidden]
        self.layers = nn.ModuleList(TiedLayer(a, b) for a, b in pairwise(widths))

    @property
    def latent_features(self) -> int:
        """Length of the latent vector h_L."""
        return self.hidden[-1]

    def _stack(self) -> list[TiedLayer]:
        return [cast(TiedLayer, layer) for layer in self.layers]

    def encode(self, x: Tensor, depth: int | None = None) -> Tensor:
        """(..., in) -> h_depth, by default h_L (Eq. 1)."""
        for layer in self._stack()[:depth]:
            x = layer.encode(x)
        return x

    def decode(self, h: Tensor) -> Tensor:
        """h_L -> (..., in)."""
        layers = self._stack()
        for j in reversed(range(len(layers))):
            h = layers[j].decode(h)
            if self.hidden_relu and j > 0:
                h = functional.relu(h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction f(x), (..., in) -> (..., in)."""
        return self.decode(self.encode(x))

    # ---- Jacobian -------------------------------------------------------------------------------

    def jacobian_penalty(self, x: Tensor, probes: int = 0) -> Tensor:
        """||dh_L/dx||_F^2 at each x, in closed form (Eq. 2).

        With d_j the 0/1 slopes of layer j's ReLU, J = D_L W_L ... D_1 W_1. For one layer it is the
        sum over the active units k of ||W[k]||^2, for more a batched product.

        Args:
            x: (N, in), the noisy input.
            probes: 0 is exact; otherwise an unbiased estimate, the mean of ||J v||^2 over so many
                random v ~ N(0, I) a sample, at the price of as many encoder passes.

        Returns:
            (N,). Its gradient reaches the weights; the slopes are constant almost everywhere.
        """
        slopes, h = [], x
        for layer in self._stack():
            h = layer.encode(h)
            slopes.append((h > 0).to(h.dtype))
        return self._penalty(x, slopes, probes)

    def _penalty(self, x: Tensor, slopes: list[Tensor], probes: int) -> Tensor:
        layers = self._stack()
        if probes > 0:
            v = torch.randn(len(x), probes, self.in_features, device=x.device, dtype=x.dtype)
            for layer, slope in zip(layers, slopes, strict=True):
                v = functional.linear(v, layer.weight) * slope[:, None]
            return v.square().sum(dim=(1, 2)) / probes
        if len(layers) == 1:
            return layer_penalty(layers[0], slopes[0])
        product = slopes[0][..., None] * layers[0].weight  # (N, h_1, in)
        for layer, slope in zip(layers[1:], slopes[1:], strict=True):
            product = slope[..., None] * torch.matmul(layer.weight, product)
        return product.square().sum(dim=(1, 2))

    # ---- losses ---------------------------------------------------------------------------------

    def terms(
        self,
        clean: Tensor,
        noise_std: float,
        contractive: float,
        noise: Tensor | None = None,
        probes: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The two parts of Eq. 2 for the whole autoencoder, unreduced.

        Args:
            clean: (N, in).
            noise_std: of the isotropic noise on the input, in the unit of ``clean``.
            contractive: lambda.
            noise: (N, in) standard normal, to be scaled by ``noise_std``; drawn if not given.
            probes: see :meth:`jacobian_penalty`.

        Returns:
            (N, in) squared errors against the clean vectors, and (N,) lambda ||J||^2.
        """
        noisy = corrupted(clean, noise_std, noise)
        slopes, h = [], noisy
        for layer in self._stack():
            h = layer.encode(h)
            slopes.append((h > 0).to(h.dtype))
        errors = (self.decode(h) - clean).square()
        if contractive == 0:
            return errors, torch.zeros_like(errors[:, 0])
        return errors, contractive * self._penalty(noisy, slopes, probes)

    def layer_terms(
        self,
        index: int,
        clean: Tensor,
        noise_std: float,
        contractive: float,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Eq. 2 for one layer alone, the layers below it fixed: greedy layer-wise training.

        Layer j learns to denoise h_(j-1) of the clean vector, with the Jacobian of its own map.

        Args:
            index: j - 1, from 0.
            clean: (N, in) vectors of the whole autoencoder's input.
            noise_std: of the noise on the layer's input.
            contractive: lambda.
            noise: standard normal, the shape of the layer's input.

        Returns:
            (N, width below) squared errors and (N,) lambda ||J_j||^2.
        """
        layer = self._stack()[index]
        with torch.no_grad():
            target = self.encode(clean, index)
        h = layer.encode(corrupted(target, noise_std, noise))
        errors = (layer.decode(h) - target).square()
        if contractive == 0:
            return errors, torch.zeros_like(errors[:, 0])
        return errors, contractive * layer_penalty(layer, (h > 0).to(h.dtype))

    def loss(self, clean: Tensor, noise_std: float, contractive: float) -> Tensor:
        """Eq. 2: sum over dimensions, mean over the batch."""
        errors, penalty = self.terms(clean, noise_std, contractive)
        return errors.sum(dim=1).mean() + penalty.mean()

    def layer_loss(self, index: int, clean: Tensor, noise_std: float, contractive: float) -> Tensor:
        """Eq. 2 for one layer: sum over dimensions, mean over the batch."""
        errors, penalty = self.layer_terms(index, clean, noise_std, contractive)
        return errors.sum(dim=1).mean() + penalty.mean()

    def decoder_weights(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of the decoder's layers, from the latent end; weight is (out, in)."""
        return [(layer.weight.t(), layer.decoder_bias) for layer in reversed(self._stack())]


def layer_penalty(layer: TiedLayer, slope: Tensor) -> Tensor:
    """||D W||_F^2 for one layer: (N, out) slopes -> (N,)."""
    return slope @ layer.weight.square().sum(dim=1)


def corrupted(clean: Tensor, std: float, noise: Tensor | None = None) -> Tensor:
    """``clean`` plus isotropic Gaussian noise of standard deviation ``std``."""
    if std == 0:
        return clean
    return clean + std * (torch.randn_like(clean) if noise is None else noise)


class LinearDecoder(nn.Module):
    """A stack of linear layers from latent vectors to outputs: an untied decoder to fine-tune.

    Args:
        widths: lengths of latent vector, intermediate layers and output.
        hidden_relu: a ReLU between the layers.
    """

    def __init__(self, widths: Sequence[int], hidden_relu: bool = False) -> None:
        super().__init__()
        self.hidden_relu = hidden_relu
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    @classmethod
    def like(cls, autoencoder: TiedAutoencoder) -> LinearDecoder:
        """One of the autoencoder's sizes with weights of its own."""
        widths = [*reversed(autoencoder.hidden), autoencoder.in_features]
        return cls(widths, autoencoder.hidden_relu)

    @classmethod
    def of(cls, autoencoder: TiedAutoencoder) -> LinearDecoder:
        """An untied copy of the autoencoder's decoder (sec. 3.3)."""
        decoder = cls.like(autoencoder)
        decoder.copy_(autoencoder.decoder_weights())
        return decoder

    @torch.no_grad()
    def copy_(self, weights: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Takes over (weight, bias) pairs, one a layer; they are copied, not shared."""
        for layer, (weight, bias) in zip(self.layers, weights, strict=True):
            linear = cast(nn.Linear, layer)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)

    def forward(self, h: Tensor) -> Tensor:
        """(..., latent) -> (..., out)."""
        for j, layer in enumerate(self.layers):
            if self.hidden_relu and j > 0:
                h = functional.relu(h)
            h = layer(h)
        return h

"""The network of Tome et al. 2017: belief maps and projected maps, fused in every stage.

Shape letters: N pictures (batch and frames folded), J joints, S stages, H/W cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.cpm import BeliefMachine
from zoo.heatmaps import argmax_points

__all__ = ["FusedMachine", "StageMaps", "SurrogateArgmax"]


class StageMaps(NamedTuple):
    """One stage; each (N, J + 1, H, W), the background last.

    Attributes:
        belief: b_t, what the convolutions say.
        projected: the maps of the lifted pose's projection, Eq. 6; ``None`` without 3D in the loop.
        fused: f_t, Eq. 7, seen by the loss and the next stage.
    """

    belief: Tensor
    projected: Tensor | None
    fused: Tensor


class FusedMachine(nn.Module):
    """A convolutional pose machine with a projection fused into the maps of every stage.

    Args:
        machine: the convolutions.
        centre: (1, 1, H, W) map of the person's place.
        fuse: learn the weights w_t of Eq. 7; without, every f_t is b_t.
    """

    centre: Tensor

    def __init__(self, machine: BeliefMachine, centre: Tensor, fuse: bool) -> None:
        super().__init__()
        self.machine = machine
        self.register_buffer("centre", centre, persistent=False)
        logits = nn.Parameter(torch.zeros(machine.stages)) if fuse else None
        self.register_parameter("fusion_logits", logits)

    def fusion_weights(self) -> Tensor:
        """w_t in [0, 1], (S,); ones without fusion."""
        if self.fusion_logits is None:
            return torch.ones(self.machine.stages, device=self.centre.device)
        return cast(Tensor, self.fusion_logits).sigmoid()

    def forward(self, image: Tensor, project: Callable[[Tensor], Tensor] | None) -> list[StageMaps]:
        """(N, 3, S, S) in [0, 1] -> maps of every stage.

        Args:
            image: the pictures.
            project: from belief maps to projected ones; ``None`` leaves 3D out of the loop.
        """
        weights = self.fusion_weights()
        belief, features = self.machine.begin(image)
        stages: list[StageMaps] = []
        for t in range(self.machine.stages):
            if t:
                belief = self.machine.refine(t, stages[-1].fused, features, self.centre)
            belief = belief.float()  # maxima, Gaussians and squares need more than half precision
            if project is None:
                stages.append(StageMaps(belief, None, belief))
                continue
            projected = project(belief)
            fused = weights[t] * belief + (1.0 - weights[t]) * projected  # Eq. 7
            stages.append(StageMaps(belief, projected, fused))
        return stages


class SurrogateArgmax(torch.autograd.Function):
    """The cell of the maximum, with the stand-in gradient of the supplement (sec. 1).

    Let g be the loss gradient at the maximum's position. Descent shall lower the belief there by
    k |g|, and raise it in the quadrant towards -g, spread by a Gaussian of one cell.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, gain: float) -> Tensor:
        """(N, J, H, W) -> (N, J, 2) cells."""
        cells = argmax_points(maps)
        ctx.save_for_backward(cells)
        ctx.size, ctx.gain = maps.shape[-2:], gain
        return cells

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the maps from that of the position."""
        (cells,) = ctx.saved_tensors
        towards = -grads[0]
        height, width = ctx.size
        strength = ctx.gain * towards.norm(dim=-1)[..., None, None]
        dx = torch.arange(width, device=cells.device, dtype=cells.dtype) - cells[..., :1]
        dy = torch.arange(height, device=cells.device, dtype=cells.dtype) - cells[..., 1:]
        inside_x = dx.sign() == towards[..., :1].sign()  # (N, J, W)
        inside_y = dy.sign() == towards[..., 1:].sign()
        quadrant = inside_y[..., :, None] & inside_x[..., None, :]
        distance = dy.square()[..., :, None] + dx.square()[..., None, :]
        density = torch.exp(-0.5 * distance) / (2 * math.pi)
        return strength * ((distance == 0).to(cells.dtype) - density * quadrant), None

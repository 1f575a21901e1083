"""Optimisers and schedules that several methods use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zoo.base import PoseModule

__all__ = ["adam", "cosine_over_phase"]


def adam(
    module: PoseModule,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Adam; on a CPU in one pass over the weights, which takes a quarter of the plain loop's time.

    Args:
        module: whose parameters train. GPUs keep PyTorch's default; so does a trainer that clips
            gradients, because Lightning does not clip for one-pass optimisers in mixed precision.
        parameters: or groups of them.
        lr: rate.
        weight_decay: coupled L2.
    """
    trainer = getattr(module, "_trainer", None)
    clips = trainer is not None and bool(trainer.gradient_clip_val)
    fused = True if module.device.type == "cpu" and not clips else None
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def cosine_over_phase(module: PoseModule, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What ``configure_optimizers`` returns for rates that fall to zero along half a cosine.

    Args:
        module: its running phase gives the length; the last phase ends with the training.
        optimizer: of that phase.
    """
    total = _phase_steps(module)

    def factor(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / total)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _phase_steps(module: PoseModule) -> int:
    """Batches of the running phase."""
    phases = [phase for phase in module.phases() if phase.epochs > 0]
    if getattr(module, "_trainer", None) is None or not phases:
        return 1
    epochs = max(module.trainer.max_epochs or 0, 0) or module.total_epochs
    running = phases[-1] if module.phase is None else module.phase
    length = running.epochs
    if running.name == phases[-1].name:
        length = max(1, epochs - sum(phase.epochs for phase in phases[:-1]))
    return max(1, round(module.trainer.estimated_stepping_batches * length / max(1, epochs)))

"""Batch norm over the samples of all processes, on GPUs and on CPUs.

PyTorch's own synchronised batch norm works on GPUs only. On CPUs the same sums are made with
``all_reduce``, which is enough for tests and for clusters without GPUs.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SyncNorm"]


class _SumOverProcesses(torch.autograd.Function):
    """The sum; its gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    return cast(Tensor, _SumOverProcesses.apply(value))


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What ``norm(x)`` is on the samples of all processes."""
    if not norm.training or not dist.is_initialized() or dist.get_world_size() == 1:
        return type(norm).forward(norm, x)
    others = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
    dist.all_reduce(count)
    mean = _sum(x.sum(others)) / count
    centred = x - mean.view(shape)
    variance = _sum(centred.square().sum(others)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = norm.momentum or 1.0 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            norm.running_var.lerp_(unbiased.to(norm.running_var), share)
    result = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    for after in ("drop", "act"):  # timm's norms that end in an activation
        if isinstance(getattr(norm, after, None), nn.Module):
            result = getattr(norm, after)(result)
    return result


class SyncNorm(LayerSync):
    """``--trainer.sync_batchnorm true``."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronises every batch norm of the model."""
        if next(model.parameters()).device.type == "cuda":
            layers: Any = importlib.import_module("timm.layers")
            # Unlike PyTorch's, it keeps norms with an activation whole.
            return cast(nn.Module, layers.convert_sync_batchnorm(model))
        for module in model.modules():
            if isinstance(module, _BatchNorm) and "forward" not in module.__dict__:
                module.forward = partial(_forward, module)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Makes every norm local again, on the CPU; on a GPU it is so with one process."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.__dict__.pop("forward", None)
        return model

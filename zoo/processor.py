"""What this machine's processor is good at."""

from __future__ import annotations

import torch

__all__ = ["SLOW_BFLOAT16", "has_bfloat16", "runs_bfloat16"]

SLOW_BFLOAT16 = (
    "This processor has no instructions for bfloat16: convolutions in bf16-mixed are many times "
    "slower here than in float32. Use --trainer.precision 32-true."
)


def has_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32: on a GPU, or with the processor's own products."""
    if torch.cuda.is_available():
        return True
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe()) if probe is not None else False


def runs_bfloat16() -> bool:
    """Whether oneDNN runs bfloat16 convolutions on this CPU at all.

    Without it torch falls back to a loop: a small pose machine fell from 26 to 2 images a second.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of torch without oneDNN
        return False

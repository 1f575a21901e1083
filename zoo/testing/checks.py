"""All checks in one tuple, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from zoo.testing.construction import (
    check_constructor,
    check_meta_device,
    check_phases,
    check_statistics,
    check_tiny,
)
from zoo.testing.files import check_checkpoint, check_fit, check_weight_file
from zoo.testing.helpers import Factory
from zoo.testing.loss import (
    check_gradients,
    check_invalid_joints,
    check_learns,
    check_loss,
    check_nothing_valid,
    check_occluded_joints,
    check_two_d_only,
)
from zoo.testing.prediction import (
    check_evaluation,
    check_forward,
    check_no_leak,
    check_predict,
    check_stream,
    check_unfitted,
)

__all__ = ["CHECKS", "check_method"]

CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_constructor,
    check_tiny,
    check_phases,
    check_statistics,
    check_meta_device,
    check_forward,
    check_unfitted,
    check_evaluation,
    check_no_leak,
    check_predict,
    check_stream,
    check_loss,
    check_gradients,
    check_invalid_joints,
    check_occluded_joints,
    check_two_d_only,
    check_nothing_valid,
    check_learns,
    check_checkpoint,
    check_weight_file,
    check_fit,
)
"""Every check, in the order in which :func:`check_method` runs them."""


def check_method(factory: Factory) -> None:
    """Runs every check; the caller's random state is left as it was.

    Args:
        factory: the method's class, or a callable that returns a small instance.

    Raises:
        AssertionError: a rule of the contract is broken; the message names it in one line.
    """
    with torch.random.fork_rng(devices=[]):
        for check in CHECKS:
            check(factory)

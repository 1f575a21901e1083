"""Weighted ridge regression from sums over batches: exact, in one pass, resumable at any batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RidgeFit"]


class RidgeFit:
    """First pass: mean and scale of the inputs. Later passes: the normal equations.

    W = argmin sum_i w_i ||W x_i - t_i||^2 + r ||W||^2, with r a share of the mean diagonal of
    sum w x x^T, chosen by the error on held-out samples (which W is not fitted to).

    Args:
        ridges: shares to choose from.

    Attributes:
        ridge: the chosen share; None before :meth:`solve`.
    """

    def __init__(self, ridges: Sequence[float]) -> None:
        self.ridges = list(ridges)
        self.ridge: float | None = None
        self._pass = -1  # number of the pass, 0 measures
        self._epoch = -1
        self._sums: dict[str, Tensor] = {}

    @property
    def measuring(self) -> bool:
        """The running pass is the first one."""
        return self._pass <= 0

    def begin_pass(self, epoch: int) -> bool:
        """Notes the epoch of a batch; true if it is the first batch after the measuring pass."""
        if epoch == self._epoch:
            return False
        self._epoch = epoch
        self._pass += 1
        return self._pass == 1

    def measure(self, inputs: Tensor, weight: Tensor) -> None:
        """Adds (N, F) inputs with (N,) weights to the moments."""
        exact, share = _exact(inputs), _exact(weight)
        self._add("count", share.sum())
        self._add("sum", share @ exact)
        self._add("squares", share @ exact.square())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and the root mean square distance between two inputs, a scalar."""
        count = self._sums["count"].clamp(min=1e-9)
        mean = self._sums["sum"] / count
        variance = (self._sums["squares"] / count - mean.square()).clamp(min=0)
        return mean.float(), (2 * variance.sum()).sqrt().clamp(min=1e-6).float()

    def add(self, inputs: Tensor, targets: Tensor, weight: Tensor, held_out: bool) -> None:
        """Adds a batch to the normal equations, or to those of the held-out samples.

        Args:
            inputs: (N, F).
            targets: (N, D).
            weight: (N,).
            held_out: only judges the ridge.
        """
        x, t, w = _exact(inputs), _exact(targets), _exact(weight)[:, None]
        kind = "held_" if held_out else ""
        self._add(f"{kind}gram", (w * x).T @ x)
        self._add(f"{kind}cross", (w * t).T @ x)
        if held_out:
            self._add("held_energy", (w * t.square()).sum())

    def solve(self) -> Tensor | None:
        """(D, F) W with the best ridge, float32; None before the normal equations have a batch."""
        if "gram" not in self._sums:
            return None
        gram, cross = self._sums["gram"], self._sums["cross"]
        values, vectors = torch.linalg.eigh(gram)
        rotated = cross @ vectors
        unit = gram.diagonal().mean().clamp(min=1e-12)
        best: tuple[float, float, Tensor] | None = None
        for ridge in self.ridges:
            solution = (rotated / (values.clamp(min=0) + ridge * unit)) @ vectors.T
            error = self._held_out_error(solution, ridge)
            if best is None or error < best[0]:
                best = error, ridge, solution
        assert best is not None
        self.ridge = best[1]
        return best[2].float()

    def _held_out_error(self, solution: Tensor, ridge: float) -> float:
        """Without held-out samples the ridge nearest to a thousandth is taken."""
        if "held_gram" not in self._sums:
            return abs(torch.tensor(ridge).log10().item() + 3)
        fit = ((solution @ self._sums["held_gram"]) * solution).sum()
        both = (solution * self._sums["held_cross"]).sum()
        return float(self._sums["held_energy"] + fit - 2 * both)

    def _add(self, key: str, value: Tensor) -> None:
        self._sums[key] = value if key not in self._sums else self._sums[key].to(value) + value

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors."""
        sums = {key: value.cpu() for key, value in self._sums.items()}
        return {"pass": self._pass, "epoch": self._epoch, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from :meth:`state_dict`; an empty one changes nothing."""
        if state:
            self._pass, self._epoch = int(state["pass"]), int(state["epoch"])
            self._sums = dict(state["sums"])


def _exact(value: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return value if value.device.type == "mps" else value.double()

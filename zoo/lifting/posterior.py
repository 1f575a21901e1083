"""Per-pose least squares: refinement of the angle, the scale's cap, and the posterior spread.

The bank answers on a grid. Here the design matrix of Eq. 4 is built for each pose at its own angle
and pitch, in float64, which also gives the derivative with respect to both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.lifting.bank import project, stack_model, view_rotation

__all__ = ["Candidate", "Solution", "posterior_std", "refine", "solve_at"]


_FAITH = 10  # weight of the prior's noise level against a pose's own misfit, in coordinates


class Candidate(NamedTuple):
    """A chosen solution: component (B,), angle (B,), pitch (B,), s (B,), a (B, D), centre (B, 2).

    ``s`` is px a unit size, ``centre`` the 2D centre of the model's joints, ``view`` (B, 3, 3)
    takes the model's axes to the camera's, which has neither roll nor azimuth.
    """

    component: Tensor
    angle: Tensor
    pitch: Tensor
    scale: Tensor
    coefficients: Tensor
    centre: Tensor
    view: Tensor


class Solution(NamedTuple):
    """s (B,), b = s a (B, D), centre (B, 2) and cost (B,), float64."""

    scale: Tensor
    scaled: Tensor
    centre: Tensor
    cost: Tensor


def _weighted(values: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Centres (B, J, 2, n) with weights w^2 over the joints, multiplies by w; and the means."""
    if seen is None:
        mean = values.mean(1, keepdim=True)
        return (values - mean).flatten(1, 2), mean
    w = seen[:, :, None, None].to(values.dtype)
    mean = (w.square() * values).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)
    return ((values - mean) * w).flatten(1, 2), mean


def design(model: Tensor, angle: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of A and their derivatives by angle and by pitch, each (B, J, 2, 1 + D).

    Args:
        model: (B, 1 + D, J, 3), each pose's component.
        angle: (B,) rad.
        pitch: (B,) rad.
    """
    t, p = angle[:, None, None], pitch[:, None, None]
    right, down, forward = project(model, t, p)
    depth = torch.sin(t) * model[..., 0] + torch.cos(t) * model[..., 1]
    columns = torch.stack((right, down), -1)
    by_angle = torch.stack((-depth, -p.sin() * right), -1)
    by_pitch = torch.stack((torch.zeros_like(right), -forward), -1)
    return tuple(c.permute(0, 2, 3, 1) for c in (columns, by_angle, by_pitch))  # type: ignore[return-value]


def solve_at(
    points: Tensor, seen: Tensor | None, model: Tensor, penalty: Tensor, angle: Tensor,
    pitch: Tensor, least: Tensor,
) -> Solution:  # fmt: skip
    """Exact minimiser of Eq. 4 at given angles and pitches, scale at least ``least``.

    Args:
        points: (B, J, 2) px.
        seen: (B, J) weights in [0, 1], or None.
        model: (B, 1 + D, J, 3).
        penalty: (B, D), sigma_j.
        angle: (B,) rad.
        pitch: (B,) rad.
        least: (B,) px a unit size.
    """
    a, a_mean = _weighted(design(model, angle, pitch)[0], seen)
    y, y_mean = _weighted(points.double()[..., None], seen)
    weight = torch.cat((torch.zeros_like(penalty[:, :1]), penalty), 1).square()
    factor = torch.linalg.cholesky(a.transpose(1, 2) @ a + torch.diag_embed(weight))
    first = torch.zeros_like(weight)[..., None]
    first[:, 0] = 1.0
    both = torch.cholesky_solve(torch.cat((a.transpose(1, 2) @ y, first), 2), factor)
    z, column = both[..., 0], both[..., 1]
    # The cap: move along the column of G that changes the scale at least cost.
    deficit = (least.double() - z[:, 0]).clamp_min(0.0)
    z = z + column * (deficit / column[:, 0])[:, None]
    residual = y[..., 0] - (a @ z[..., None])[..., 0]
    cost = residual.square().sum(1) + (weight * z.square()).sum(1)
    centre = (y_mean - (a_mean @ z[:, None, :, None]))[:, 0, :, 0]
    return Solution(z[:, 0], z[:, 1:], centre, cost)


def refine(
    found: Candidate, points: Tensor, seen: Tensor | None, mean: Tensor, basis: Tensor,
    penalty: Tensor, least: Tensor, steps: int, reach: float, free_pitch: bool, chunk: int = 1024,
) -> Candidate:  # fmt: skip
    """Newton steps on the angle (and pitch) of each pose, with its exact coefficients.

    A step is kept only where the cost falls, and never longer than ``reach`` (rad). Gradients flow
    through the final solution at the refined angles.

    Args:
        found: the grid's choice.
        points: (B, J, 2) px.
        seen: (B, J) weights, or None.
        mean: (M, J, 3).
        basis: (M, D, J, 3).
        penalty: (M, D), sigma_j.
        least: (B,), the scale's cap.
        steps: Newton steps.
        reach: longest step.
        free_pitch: refine the pitch as well.
        chunk: poses at a time.
    """
    if not len(points):
        return found
    stacked, parts = stack_model(mean, basis).double(), []
    for start in range(0, len(points), chunk):
        part = slice(start, start + chunk)
        here = Candidate(*(field[part] for field in found))
        y, w, floor = points[part], None if seen is None else seen[part], least[part]
        model, sigma = stacked[here.component], penalty.double()[here.component]
        angle, pitch = here.angle.detach().double(), here.pitch.double()
        with torch.no_grad():
            now = solve_at(y, w, model, sigma, angle, pitch, floor)
            # A symmetric pose seen from the front is stationary in its angle: look beside it too.
            still = torch.zeros(len(y), 2, dtype=torch.float64, device=y.device)
            beside = [still + still.new_tensor([side * reach / 4, 0.0]) for side in (-1, 1)]
            radius = torch.full_like(still[:, :1], reach)
            for number in range(steps + 2):
                if number < 2:
                    step = beside[number] + torch.stack((here.angle.detach() - angle, pitch * 0), 1)
                else:
                    step = _newton(now, y, w, model, sigma, angle, pitch, free_pitch)
                    step = step.clamp(-radius, radius)
                trial = solve_at(y, w, model, sigma, angle + step[:, 0], pitch + step[:, 1], floor)
                better = trial.cost < now.cost
                if number >= 2:  # a step that fails is tried shorter
                    radius = torch.where(better[:, None], radius, step.abs().amax(1, True) / 3)
                angle = torch.where(better, angle + step[:, 0], angle)
                pitch = torch.where(better, pitch + step[:, 1], pitch)
                pairs = zip(trial, now, strict=True)
                now = Solution(*(
                    torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in pairs
                ))  # fmt: skip
        last = solve_at(y, w, model, sigma, angle, pitch, floor)
        a = last.scaled / last.scale[:, None]
        fields = (angle, pitch, last.scale, a, last.centre, view_rotation(angle, pitch))
        parts.append(Candidate(here.component, *(f.to(points.dtype) for f in fields)))
    return Candidate(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _normal(
    z: Tensor, seen: Tensor | None, model: Tensor, penalty: Tensor, angle: Tensor, pitch: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted columns [A, dA/dangle z, dA/dpitch z] and their normal matrix with the penalty."""
    a, by_angle, by_pitch = design(model, angle, pitch)
    extra = [(d @ z[:, None, :, None]) for d in (by_angle, by_pitch)]
    columns, _ = _weighted(torch.cat((a, *extra), 3), seen)
    size = torch.cat(
        (torch.zeros_like(penalty[:, :1]), penalty, torch.zeros_like(penalty[:, :2])), 1
    )
    return columns, columns.transpose(1, 2) @ columns + torch.diag_embed(size.square())


def _newton(
    now: Solution, points: Tensor, seen: Tensor | None, model: Tensor, penalty: Tensor,
    angle: Tensor, pitch: Tensor, free_pitch: bool,
) -> Tensor:  # fmt: skip
    """(B, 2): Newton steps of angle and pitch on the cost with its best (s, b).

    Where the Hessian bends the wrong way, its Gauss-Newton part takes its place.
    """
    z = torch.cat((now.scale[:, None], now.scaled), 1)
    columns, normal = _normal(z, seen, model, penalty, angle, pitch)
    y, _ = _weighted(points.double()[..., None], seen)
    size = z.shape[1]
    residual = y - columns[..., :size] @ z[..., None]
    slope = -(columns[..., size:].transpose(1, 2) @ residual)
    # Second derivatives of A z times the residual; project() says how the axes turn.
    t, p = angle[:, None, None], pitch[:, None, None]
    right, down, _ = project(model, t, p)
    depth = t.sin() * model[..., 0] + t.cos() * model[..., 1]
    zero = torch.zeros_like(right)
    second = [(-right, p.sin() * depth), (zero, -p.cos() * right), (zero, -down)]
    bends = []
    for pair in second:
        moved = torch.stack(pair, -1).permute(0, 2, 3, 1) @ z[:, None, :, None]
        bends.append(-(_weighted(moved, seen)[0] * residual).sum((1, 2)))
    _, by_angle, by_pitch = design(model, angle, pitch)
    cross = [-(_weighted(d, seen)[0].transpose(1, 2) @ residual)[..., 0] for d in
             (by_angle, by_pitch)]  # fmt: skip
    hessian = normal.clone()
    for column, values in enumerate(cross):
        hessian[:, :size, size + column] += values
        hessian[:, size + column, :size] += values
    hessian[:, -2, -2] += bends[0]
    hessian[:, -1, -2] += bends[1]
    hessian[:, -2, -1] += bends[1]
    hessian[:, -1, -1] += bends[2]
    tiny = now.scale.square() * 1e-9
    steps = []
    for matrix in (hessian, normal):
        inner, mixed, outer = (
            matrix[:, :size, :size],
            matrix[:, :size, size:],
            matrix[:, size:, size:],
        )
        reduced = outer - mixed.transpose(1, 2) @ torch.linalg.solve(inner, mixed)
        reduced = reduced + torch.diag_embed(tiny[:, None].expand(-1, 2))
        if free_pitch:
            step = -torch.linalg.solve(reduced, slope)[..., 0]
            good = (reduced[:, 0, 0] > 0) & (torch.linalg.det(reduced) > 0)
        else:
            step = torch.nn.functional.pad(-slope[:, 0] / reduced[:, :1, 0], (0, 1))
            good = reduced[:, 0, 0] > 0
        steps.append((step, good))
    return torch.where(steps[0][1][:, None], steps[0][0], steps[1][0])


def posterior_std(
    found: Candidate, seen: Tensor | None, mean: Tensor, basis: Tensor,
    noise: Tensor, penalty: Tensor, cost: Tensor, root: int, pitch_std: float,
    chunk: int = 1024,
) -> Tensor:  # fmt: skip
    """Standard deviation of every joint relative to the root, (B, J), unit size.

    Laplace approximation at the solution: the posterior of (s, b, angle, pitch) has the normal
    matrix of the linearised Eq. 4 as its precision, in units of the 2D noise s sigma; its image in
    3D, plus the model's own residual, is averaged over the three axes. The noise is scaled by how
    well the pose fits. It knows nothing of perspective, other bodies or a wrong angle: see
    :func:`zoo.lifting.calibrate`.

    Args:
        found: solutions.
        seen: (B, J) weights, or None.
        mean: (M, J, 3).
        basis: (M, D, J, 3).
        noise: (M,).
        penalty: (M, D), sigma_j.
        cost: (B,) px^2, Eq. 4 at the solution.
        root: joint at the origin.
        pitch_std: prior std of the camera's pitch, rad.
        chunk: poses at a time.
    """
    stacked, parts = stack_model(mean, basis).double(), []
    for start in range(0, len(found.scale), chunk):
        here = Candidate(*(field[start : start + chunk].detach() for field in found))
        w = None if seen is None else seen[start : start + chunk]
        model, sigma = stacked[here.component], penalty.double()[here.component]
        angle, pitch = here.angle.double(), here.pitch.double()
        a = here.coefficients.double()
        unit = torch.cat((torch.ones_like(a[:, :1]), a), 1)  # z / s
        # In units of s everything is free of px: columns of A / s, noise sigma.
        _, normal = _normal(unit, w, model, sigma, angle, pitch)
        level = noise.double()[here.component]
        # Eq. 4's cost over the noise is chi-squared with as many degrees of freedom as there are
        # coordinates beyond scale, shift and angle: a poor fit tells of more noise.
        freedom = 2.0 * (mean.shape[1] if w is None else (w > 0).sum(1)) - 4.0
        misfit = cost[start : start + chunk] / (here.scale.square() * level)
        level = level * (_FAITH + misfit) / (_FAITH + freedom)
        normal = normal / level[:, None, None]
        normal[:, -1, -1] += pitch_std**-2
        lower = torch.linalg.cholesky(normal)
        pose = torch.einsum("bd,bdji->bji", unit, model)
        camera = torch.stack(project(pose, angle[:, None], pitch[:, None]), -1)
        directions = torch.stack(
            project(model[:, 1:], angle[:, None, None], pitch[:, None, None]), -1
        )
        by_scale = -torch.einsum("bd,bdji->bji", a, directions)
        # Turning about the vertical and nodding move the pose rigidly.
        up = torch.stack((torch.zeros_like(pitch), -pitch.cos(), -pitch.sin()), -1)
        by_angle = torch.linalg.cross(up[:, None].expand_as(camera), camera)
        by_pitch = torch.stack(
            (torch.zeros_like(camera[..., 0]), -camera[..., 2], camera[..., 1]), -1
        )
        jacobian = torch.cat(
            (by_scale[:, None], directions, by_angle[:, None], by_pitch[:, None]), 1
        )  # (B, 3 + D, J, 3)
        jacobian = (jacobian - jacobian[:, :, root : root + 1]).flatten(2)
        spread = torch.linalg.solve_triangular(lower, jacobian, upper=False)
        variance = spread.square().sum(1).unflatten(1, (-1, 3)).mean(2)
        residual = 2 * level[:, None].expand_as(variance).clone()
        residual[:, root] = 0.0
        parts.append((variance + residual).sqrt())
    return torch.cat(parts) if parts else found.scale.new_zeros(0, mean.shape[1])

"""``PPCALift``: 3D poses from 2D joints through the pose prior (Tome et al., sec. 5.3, Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.errors import UsageError
from zoo.lifting.bank import (
    Bank,
    angle_grid,
    build_bank,
    camera_tilt,
    stack_model,
)
from zoo.lifting.missing import Group, group_poses, impute, marginal_costs
from zoo.lifting.posterior import Candidate, posterior_std, refine, solve_at
from zoo.prior import Prior
from zoo.skeleton import get_skeleton

__all__ = ["MIN_JOINTS", "LiftResult", "PPCALift"]

MIN_JOINTS = 5
"""Fewest joints of positive weight that are lifted."""

_CHUNK = 1024  # poses of one pass: its temporaries stay in the cache
_MAX_BANKS = 16
_PATTERN_POSES = 512  # poses of one visibility after which it gets tables of its own
_BIN = math.radians(0.5)
_TENSORS = ("mean", "basis", "variances", "noise", "weights")
CALIBRATION = ("std_scale", "floor_mm", "radius_50", "radius_90")
"""Keys of ``Prior.calibration`` that the layer reads; see :func:`zoo.lifting.calibrate`."""
_PITCH_STD = math.radians(5.0)
"""Prior std of the true pitch about the one assumed, for the uncertainty: it also stands for the
slant of the line of sight to a person away from the optical axis."""
_UNCALIBRATED = {"std_scale": 1.0, "floor_mm": 0.0, "radius_50": 1.538, "radius_90": 2.500}


class _Tables(NamedTuple):
    """The prior in the poses' precision: (M, 3J), (M D, 3J), (M, D), (M,), (M,), (J,), numbers."""

    mean: Tensor
    basis: Tensor
    penalty: Tensor
    noise: Tensor
    score: Tensor
    height: Tensor
    tall: float
    size: float


class LiftResult(NamedTuple):
    """What :class:`PPCALift` finds; camera axes are x right, y down, z forward.

    Attributes:
        pose_3d: (B, J, 3) mm, camera axes, root at the origin. Its size is that of the prior's
            mean person: a single picture does not tell it.
        reprojection: (B, J, 2), px of the input: the model's own 2D (Eq. 5), also where joints
            were missing.
        scale: (B,) px per mm.
        coefficients: (B, D), a of the chosen component, unit size.
        angle: (B,) rad, the model's turn about the vertical: in the world of the camera rotation if
            one was given, else relative to the camera.
        pitch: (B,) rad, camera pitch used; positive looks down.
        component: (B,) int64.
        cost: (B,) px^2, Eq. 4 at the solution, the penalty on b = s a (footnote 3).
        std_3d: (B, J) mm, standard deviation per coordinate (root mean square over the three axes)
            of each joint relative to the root; ``None`` unless asked for. The joint lies within
            ``PPCALift.radius(0.5)`` (or ``0.9``) times this with that probability.
    """

    pose_3d: Tensor
    reprojection: Tensor
    scale: Tensor
    coefficients: Tensor
    angle: Tensor
    pitch: Tensor
    component: Tensor
    cost: Tensor
    std_3d: Tensor | None


class PPCALift(nn.Module):
    """Closed-form lift over all ground-plane angles and mixture components at once.

    For every angle and component Eq. 4 is a linear least-squares problem in the scale and the
    coefficients; the best angle wins inside a component, the most probable solution among the
    components. There is no trainable parameter. Gradients flow through ``pose_3d``,
    ``reprojection``, ``scale`` and ``coefficients`` with angle and component fixed: without
    missing joints d reprojection / d y = A G A^T plus the translation (supplement, Eq. 8).

    Args:
        prior: the fitted prior.
        rotations: R, angles on [0, 2 pi); even steps.
        pitches: camera pitches in rad that are searched when no camera rotation is given; the
            default assumes a level camera. Positive looks down.
        gain: factor on the penalty: 2D noise std over the model's own residual std. 1 as printed.
        scale_min: least scale, where 1 makes the model's mean as tall as the visible joints are in
            the image. Keeps the fit from shrinking the person into a huge deformation.
        refine: Newton steps on the angle (and on the pitch, if it is searched) around the
            best candidate, each with the exact coefficients; 0 keeps the grid's.
        uncertainty: fill ``std_3d``; can be overridden at each call.
        component_weights: count ln pi_k in the choice of the component.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    noise: Tensor
    weights: Tensor
    size_mm: Tensor
    calibration: Tensor

    def __init__(
        self,
        prior: Prior,
        rotations: int = 80,
        pitches: Sequence[float] = (0.0,),
        *,
        gain: float = 1.0,
        scale_min: float = 0.8,
        refine: int = 0,
        uncertainty: bool = False,
        component_weights: bool = False,
    ) -> None:
        super().__init__()
        if rotations < 1 or not pitches:
            raise UsageError("a lift needs at least one rotation and one pitch")
        if not (gain > 0 and scale_min > 0):
            raise UsageError(f"gain ({gain}) and scale_min ({scale_min}) must be positive")
        self.rotations, self.pitches = rotations, tuple(float(p) for p in pitches)
        self.gain, self.scale_min, self.refine = gain, scale_min, refine
        self.uncertainty, self.component_weights = uncertainty, component_weights
        self._banks: dict[tuple[Any, ...], Bank] = {}
        self._tables: dict[torch.dtype, _Tables] = {}
        self._pattern_poses: dict[tuple[bool, ...], int] = {}
        self.set_prior(prior)

    # ---- the prior ------------------------------------------------------------------------------

    def set_prior(self, prior: Prior) -> None:
        """Replaces the prior; its skeleton may differ, the layer's options stay."""
        self.skeleton_name = prior.skeleton
        self.root = get_skeleton(prior.skeleton).index(get_skeleton(prior.skeleton).root)
        device = self.mean.device if "mean" in self._buffers else None
        numbers = [prior.calibration.get(key, _UNCALIBRATED[key]) for key in CALIBRATION]
        for name in _TENSORS:
            self.register_buffer(name, getattr(prior, name).to(device, torch.float64))
        self.register_buffer("size_mm", torch.tensor(prior.size_mm, dtype=torch.float64).to(device))
        self.register_buffer("calibration", torch.tensor(numbers, dtype=torch.float64).to(device))
        self._forget()

    @property
    def prior(self) -> Prior:
        """The prior held by the buffers, on the CPU."""
        tensors = {name: getattr(self, name).cpu().double() for name in _TENSORS}
        numbers = dict(zip(CALIBRATION, self.calibration.tolist(), strict=True))
        return Prior(
            **tensors, skeleton=self.skeleton_name, size_mm=float(self.size_mm), calibration=numbers
        )

    def _forget(self) -> None:
        self._banks.clear()
        self._tables.clear()

    def _calibrated(self, std: Tensor) -> Tensor:
        """The posterior's (B, J) mm, widened as validation motion asks for; zero at the root."""
        factor, floor = self.calibration[0], self.calibration[1]
        wide = factor * (std.square() + floor.square()).sqrt()
        wide[:, self.root] = 0.0
        return wide

    def radius(self, level: float) -> float:
        """Radius in units of ``std_3d`` of the ball that holds a joint with probability ``level``.

        Measured by :func:`zoo.lifting.calibrate` for 0.5 and 0.9; a Gaussian's without calibration.

        Raises:
            zoo.errors.UsageError: another level.
        """
        if level not in (0.5, 0.9):
            raise UsageError(f"radii are known for the levels 0.5 and 0.9, not {level}")
        return float(self.calibration[2 if level == 0.5 else 3])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Another prior may have another number of components or basis vectors.
        for name in _TENSORS:
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != getattr(self, name).shape:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        self._forget()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _sigma(self) -> Tensor:
        """(M, D): the sigma_j of Eq. 4, noise std over prior std, times the gain."""
        floor = 1e-12 * self.noise[:, None]
        return self.gain * (self.noise[:, None] / torch.maximum(self.variances, floor)).sqrt()

    def bank(
        self, pitch: float, dtype: torch.dtype = torch.float32, pattern: tuple[bool, ...] = ()
    ) -> Bank:
        """The precomputed tables of one camera pitch (rad), built on first use.

        Args:
            pitch: rad.
            dtype: of the poses.
            pattern: which joints are there, if the same ones in every pose; empty: all.
        """
        key = (round(pitch, 6), dtype, pattern)
        if key not in self._banks:
            if len(self._banks) >= 4 * _MAX_BANKS:
                self._banks.pop(next(iter(self._banks)))
            with torch.no_grad():
                model = stack_model(self.mean, self.basis).double()
                angles = angle_grid(self.rotations).to(model.device)
                seen = torch.tensor(pattern, device=model.device) if pattern else None
                self._banks[key] = build_bank(
                    model, self._sigma().double(), pitch, angles, dtype, seen
                )
        return self._banks[key]

    def _pattern(self, seen: Tensor) -> tuple[bool, ...]:
        """The visibility that all poses share and that is common enough for tables of its own."""
        if not bool(((seen == seen[:1]) & ((seen == 0) | (seen == 1))).all()):
            return ()
        pattern = tuple(seen[0].bool().tolist())
        if len(self._pattern_poses) > 1024:
            self._pattern_poses.clear()
        self._pattern_poses[pattern] = self._pattern_poses.get(pattern, 0) + len(seen)
        return pattern if self._pattern_poses[pattern] >= _PATTERN_POSES else ()

    def _table(self, dtype: torch.dtype) -> _Tables:
        if dtype not in self._tables:
            dims = 3 * (self.mean.shape[1] - 1)
            spread = (self.variances + self.noise[:, None]).log().sum(1)
            score = (spread + (dims - self.variances.shape[1]) * self.noise.log()) / 2
            if self.component_weights:
                score = score - self.weights.log()
            height = self.mean.mean(0)[:, 2]
            self._tables[dtype] = _Tables(
                mean=self.mean.detach().flatten(1).to(dtype),
                basis=self.basis.detach().flatten(2).flatten(0, 1).to(dtype),
                penalty=self._sigma().detach().to(dtype),
                noise=self.noise.detach().to(dtype),
                score=score.detach().to(dtype),
                height=height.detach().to(dtype),
                tall=float(height.max() - height.min()),
                size=float(self.size_mm),
            )
        return self._tables[dtype]

    # ---- the lift -------------------------------------------------------------------------------

    def forward(
        self,
        joints_2d: Tensor,
        weights: Tensor | None = None,
        camera: Tensor | None = None,
        *,
        uncertainty: bool | None = None,
    ) -> LiftResult:
        """Lifts 2D joints.

        Args:
            joints_2d: (B, J, 2) px (any unit, x right, y down).
            weights: (B, J) in [0, 1], or bool: 0 is missing (its coordinates are not read), 1 seen,
                between: the inverse relative std of its noise. ``None``: all seen.
            camera: (3, 3) or (B, 3, 3), rotation from the world (z up) to the camera; only its
                pitch and roll matter. ``None``: no roll, the best of ``pitches``. More than 16
                distinct pitches in a batch are rounded to half a degree.
            uncertainty: overrides the constructor's choice.

        Returns:
            :class:`LiftResult`, in the precision of ``joints_2d`` (float32 or float64).

        Raises:
            zoo.errors.UsageError: shapes do not fit, a weight lies outside [0, 1], or a pose has
                fewer than 5 joints of positive weight.
        """
        if torch.is_autocast_enabled(joints_2d.device.type):
            with torch.autocast(joints_2d.device.type, enabled=False):
                return self.forward(joints_2d, weights, camera, uncertainty=uncertainty)
        joints = self.mean.shape[1]
        if joints_2d.ndim != 3 or joints_2d.shape[1:] != (joints, 2):
            raise UsageError(
                f"joints_2d has shape {tuple(joints_2d.shape)}, expected (B, {joints}, 2) "
                f"for {self.skeleton_name}"
            )
        if joints_2d.dtype != torch.float64:
            joints_2d = joints_2d.float()
        seen = self._checked_weights(joints_2d, weights)
        tilt = None
        if camera is not None:
            given = camera.to(joints_2d.device, torch.float64).expand(len(joints_2d), 3, 3)
            tilt = torch.stack(camera_tilt(given), 1).to(joints_2d.dtype)
        wanted = self.uncertainty if uncertainty is None else uncertainty
        if len(joints_2d) <= _CHUNK:
            return self._lift(joints_2d, seen, tilt, wanted)
        parts = []
        for start in range(0, len(joints_2d), _CHUNK):
            part = slice(start, start + _CHUNK)
            weight, angles = (None if t is None else t[part] for t in (seen, tilt))
            parts.append(self._lift(joints_2d[part], weight, angles, wanted))
        fields = zip(*parts, strict=True)
        joined: list[Any] = [None if field[0] is None else torch.cat(field) for field in fields]
        return LiftResult(*joined)

    def _lift(
        self, points: Tensor, seen: Tensor | None, tilt: Tensor | None, wanted: bool
    ) -> LiftResult:
        """Lifts one chunk; ``tilt`` is roll, pitch and azimuth (B, 3)."""
        tables = self._table(points.dtype)
        with (
            torch.no_grad()
        ):  # the centre only conditions float32; the result does not depend on it
            if seen is None:
                offset = points.mean(1, keepdim=True)
            else:
                clean = torch.where((seen > 0)[:, :, None], points, 0.0)
                offset = (clean * seen[:, :, None]).sum(1, True) / seen.sum(1)[:, None, None]
        local = points - offset
        if seen is not None:
            local = torch.where((seen > 0)[:, :, None], local, 0.0)
        if tilt is not None:
            local = _roll(local, -tilt[:, 0])
        with torch.no_grad():
            least = self._least(local.detach(), seen, tables)
        if tilt is None:
            found = self._search(local, seen, least, self.pitches)
        else:
            found = self._known_pitch(local, seen, least, tilt[:, 1])
        if self.refine:
            found = refine(
                found, local, seen, self.mean, self.basis, self._sigma(), least[:, 0],
                self.refine, 2 * math.pi / self.rotations, tilt is None and len(self.pitches) > 1,
            )  # fmt: skip
        return self._result(found, local, seen, offset, tilt, wanted, tables)

    def _checked_weights(self, joints_2d: Tensor, weights: Tensor | None) -> Tensor | None:
        if weights is None:
            return None
        if weights.shape != joints_2d.shape[:2]:
            raise UsageError(
                f"weights have shape {tuple(weights.shape)}, expected {tuple(joints_2d.shape[:2])}"
            )
        seen = weights.detach().to(joints_2d.device, joints_2d.dtype)
        if not len(seen) or bool((seen == 1).all()):
            return None
        if not bool(((seen >= 0) & (seen <= 1)).all()):
            raise UsageError("weights must lie in [0, 1]")
        counts = (seen > 0).sum(1)
        if int(counts.min()) < MIN_JOINTS:
            row = int(counts.argmin())
            raise UsageError(
                f"pose {row} has {int(counts[row])} visible joints; the lift needs {MIN_JOINTS}"
            )
        return seen

    def _known_pitch(
        self, points: Tensor, seen: Tensor | None, least: Tensor, pitch: Tensor
    ) -> Candidate:
        """Groups the poses by pitch and lifts each group under its own bank."""
        values, group = torch.unique((pitch.double() * 1e6).round(), return_inverse=True)
        if len(values) > _MAX_BANKS:
            values, group = torch.unique((pitch.double() / _BIN).round(), return_inverse=True)
            values = values * (_BIN * 1e6)
        pitches = [value * 1e-6 for value in values.tolist()]
        if len(pitches) <= 1:
            return self._search(points, seen, least, pitches or [0.0])
        rows = [(group == k).nonzero()[:, 0] for k in range(len(pitches))]
        parts = [
            self._search(points[r], None if seen is None else seen[r], least[r], [p])
            for p, r in zip(pitches, rows, strict=True)
        ]
        back = torch.cat(rows).argsort()
        return Candidate(*(torch.cat(field)[back] for field in zip(*parts, strict=True)))

    def _search(
        self, points: Tensor, seen: Tensor | None, least: Tensor, pitches: Sequence[float]
    ) -> Candidate:
        """Best pitch and angle of each component, then the best component."""
        y = points.flatten(1)
        pattern = self._pattern(seen) if seen is not None and len(seen) else ()
        banks = [self.bank(pitch, y.dtype, pattern) for pitch in pitches]
        with torch.no_grad():
            flat = y.detach()
            whole = seen is None or bool(pattern) or not len(y)
            groups = [] if whole or seen is None else group_poses(seen)
            cost, index, scale = self._scan(banks[0], flat, groups, least)
            which = torch.zeros_like(index) if len(banks) > 1 else None
            for number, bank in enumerate(banks[1:], 1):
                c, i, s = self._scan(bank, flat, groups, least)
                better = c < cost
                cost, scale = torch.where(better, c, cost), torch.where(better, s, scale)
                index = torch.where(better, i, index)
                which = which.masked_fill(better, number) if which is not None else None
            component, at = self._choose(cost, scale, index)
            bank_of = None if which is None else which.gather(1, component[:, None])[:, 0]
        z, centre = self._solve(banks, bank_of, at, y, seen if groups else None, groups)
        turn = at % self.rotations
        angle = turn.to(y.dtype) * (2 * math.pi / self.rotations)
        if bank_of is None:
            pitch, view = (
                torch.full_like(angle, banks[0].pitch),
                banks[0].view.index_select(0, turn),
            )
        else:
            pitch = y.new_tensor([bank.pitch for bank in banks])[bank_of]
            view = torch.stack([bank.view for bank in banks])[bank_of, turn]
        below = z[:, 0].detach() < least[:, 0]
        if bool(below.any()):
            rows = below.nonzero()[:, 0]
            capped = solve_at(
                points[rows], None if seen is None else seen[rows],
                stack_model(self.mean, self.basis).double()[component[rows]],
                self._sigma().double()[component[rows]], angle[rows].double(),
                pitch[rows].double(), least[rows, 0],
            )  # fmt: skip
            fixed = torch.cat((capped.scale[:, None], capped.scaled), 1).to(y.dtype)
            z = z.index_put((rows,), fixed)
            centre = centre.index_put((rows,), capped.centre.to(y.dtype))
        return Candidate(component, angle, pitch, z[:, 0], z[:, 1:] / z[:, :1], centre, view)

    def _scan(
        self, bank: Bank, y: Tensor, groups: list[Group], least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Least cost over the angles, its candidate and its scale, each (B, M)."""
        if not groups:
            if len(y) <= bank.chunk:
                cost, scale = bank.costs(y)
                return self._best(bank, bank.capped(cost, scale, least), scale, least)
            pieces = zip(torch.split(y, bank.chunk), torch.split(least, bank.chunk), strict=True)
            parts = [self._scan(bank, a, [], b) for a, b in pieces]
            cost, index, scale = (torch.cat(field) for field in zip(*parts, strict=True))
            return cost, index, scale
        m = bank.components
        best, scales = y.new_empty(len(y), m), y.new_empty(len(y), m)
        index = torch.empty(len(y), m, dtype=torch.int64, device=y.device)
        for group in groups:
            at = group.poses
            cost, scale = marginal_costs(bank, y[at], group, least[at])
            best[at], index[at], scales[at] = self._best(bank, cost, scale, least[at])
        return best, index, scales

    @staticmethod
    def _best(
        bank: Bank, cost: Tensor, scale: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Least of the costs (B, K) of each component: value, candidate, scale (B, M)."""
        m, r = bank.components, bank.angles
        if m == 1:
            low, at = cost.min(1, keepdim=True)
        else:
            low, at = cost.view(-1, m, r).min(2)
            at = at + torch.arange(0, m * r, r, device=at.device)
        return low, at, torch.maximum(scale.gather(1, at), least)

    def _least(self, points: Tensor, seen: Tensor | None, tables: _Tables) -> Tensor:
        """The scale's cap (B, 1): ``scale_min`` times what makes the mean as tall as the joints."""
        v = points[:, :, 1]
        if seen is None:
            return (v.amax(1, True) - v.amin(1, True)) * (self.scale_min / tables.tall)
        hidden, inf = seen <= 0, math.inf
        z = tables.height.expand_as(v)
        extent, model = (
            x.masked_fill(hidden, -inf).amax(1, True) - x.masked_fill(hidden, inf).amin(1, True)
            for x in (v, z)
        )
        # Joints of one height (both shoulders, say) tell no scale: the reference stays small.
        return extent * self.scale_min / model.clamp_min(0.25 * tables.tall)

    def _choose(self, cost: Tensor, scale: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable component and its candidate, (B,).

        The score is cost / (2 s^2 sigma^2) + ln|C| / 2, and - ln pi where that is asked for.
        """
        if cost.shape[1] == 1:
            return torch.zeros_like(index[:, 0]), index[:, 0]
        table = self._table(cost.dtype)
        misfit = cost / (2 * scale.square().clamp_min(1e-30) * table.noise)
        component = (misfit + table.score).argmin(1)
        return component, index.gather(1, component[:, None])[:, 0]

    def _solve(
        self, banks: list[Bank], which: Tensor | None, index: Tensor, y: Tensor,
        seen: Tensor | None, groups: list[Group],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Uncapped (s, b) (B, 1 + D) and the 2D centre (B, 2) of the chosen candidates."""
        if which is None:
            full = impute(banks[0], y, groups, index) if groups else y
            solve = banks[0].solve.index_select(0, index)  # a memory copy; indexing is slower
            solution = torch.bmm(full[:, None], solve)[:, 0]  # a row first: 4 times as fast
            return solution[:, :-2], solution[:, -2:]
        solution = y.new_zeros(len(y), banks[0].solve.shape[2])
        for number, bank in enumerate(banks):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                part = None if seen is None else seen[rows]
                few = [] if part is None else group_poses(part)
                some = self._solve([bank], None, index[rows], y[rows], part, few)
                solution = solution.index_put((rows,), torch.cat(some, 1))
        return solution[:, :-2], solution[:, -2:]

    def _result(
        self, found: Candidate, points: Tensor, seen: Tensor | None, offset: Tensor,
        tilt: Tensor | None, wanted: bool, tables: _Tables,
    ) -> LiftResult:  # fmt: skip
        """The pose of a solution in the input's own frame."""
        count, joints = points.shape[:2]
        scale, a, which = found.scale, found.coefficients, found.component
        m = len(tables.mean)
        if m == 1:
            pose = torch.addmm(tables.mean, a, tables.basis)
            penalty = tables.penalty
        else:  # one product: the coefficients in the columns of their own component
            mine = nn.functional.one_hot(which, m).to(a.dtype)
            wide = (mine[:, :, None] * a[:, None, :]).flatten(1)
            pose = tables.mean[which] + wide @ tables.basis
            penalty = tables.penalty[which]
        camera = pose.view(count, joints, 3) @ found.view.transpose(1, 2)
        image = scale[:, None, None] * camera[:, :, :2] + found.centre[:, None]
        misfit = (points - image).square()
        if seen is not None:
            misfit = misfit * seen.square()[:, :, None]
        cost = misfit.sum((1, 2)) + (penalty * a * scale[:, None]).square().sum(1)
        angle = found.angle
        if tilt is not None:
            roll = tilt[:, 0]
            image = _roll(image, roll)
            camera = torch.cat((_roll(camera[:, :, :2], roll), camera[:, :, 2:]), 2)
            angle = (angle - tilt[:, 2]).remainder(2 * math.pi)
        std = None
        if wanted:
            with torch.no_grad():
                unit = posterior_std(
                    found, seen, self.mean, self.basis, self.noise, self._sigma(),
                    cost.double(), self.root, _PITCH_STD,
                )  # fmt: skip
                std = self._calibrated(unit * tables.size).to(points.dtype)
        return LiftResult(
            pose_3d=(camera - camera[:, self.root : self.root + 1]) * tables.size,
            reprojection=image + offset,
            scale=scale / tables.size,
            coefficients=a,
            angle=angle,
            pitch=found.pitch,
            component=which,
            cost=cost,
            std_3d=std,
        )


def _roll(points: Tensor, angle: Tensor) -> Tensor:
    """Turns image points (B, J, 2) by ``angle`` (B,) about the origin."""
    x, y = points.unbind(2)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack((cos * x - sin * y, sin * x + cos * y), 2)

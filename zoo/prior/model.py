"""The 3D pose prior of Tome et al. (sec. 4): aligned probabilistic PCA and its mixture.

A pose is centred, scaled to unit size (sum of squared limb lengths one) and turned about the
vertical into a common ground-plane orientation; what is left is Gaussian with covariance
``sum_j variances_j e_j e_j^T + noise I``. :func:`fit_prior` finds the turn of every pose and the
Gaussian together, then splits the Gaussian into a mixture.

Frame: world axes, z up. The model's yaw is fixed so that the hips of its mean lie along x, the left
one on the positive side. Shape letters: N poses, J joints, D basis size, M mixture components.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from zoo.errors import CheckpointError, DataError, OutputError, UsageError, ZooError
from zoo.prior.alignment import (
    FitProgress,
    Gaussian,
    PoseSet,
    align,
    rotation_harmonics,
    rotation_step,
    turn,
)
from zoo.prior.mixture import fit_mixture, mixture_log_prob
from zoo.skeleton import Skeleton, get_skeleton

__all__ = ["FitProgress", "Prior", "fit_prior", "mirror_poses", "normalise_poses", "pose_size"]

_FORMAT = "zoo-pose-prior"
_VERSION = 1
_TENSORS = ("mean", "basis", "variances", "noise", "weights")


def pose_size(poses: Tensor, skeleton: str = "h36m_17") -> Tensor:
    """Root of the sum of squared limb lengths of poses (..., J, 3), shape (...), their unit."""
    children, parents = zip(*get_skeleton(skeleton).bones, strict=True)
    bones = poses[..., list(children), :] - poses[..., list(parents), :]
    return bones.square().sum((-1, -2)).sqrt()


def normalise_poses(poses: Tensor, skeleton: str = "h36m_17") -> Tensor:
    """Centres poses (..., J, 3) on their joint mean and scales them to unit size (sec. 4)."""
    centred = poses - poses.mean(-2, keepdim=True)
    return centred / pose_size(poses, skeleton)[..., None, None]


def mirror_poses(poses: Tensor, skeleton: str = "h36m_17") -> Tensor:
    """The mirror image (x -> -x, left and right relabelled) of poses (..., J, 3) (sec. 4)."""
    flipped = poses[..., list(get_skeleton(skeleton).flip), :]
    return flipped * flipped.new_tensor([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Prior:
    """A mixture of PPCA models of aligned poses of unit size, world axes, z up; float64.

    Attributes:
        mean: (M, J, 3), centred on the joint mean.
        basis: (M, D, J, 3), orthonormal when each (J, 3) is read as one vector.
        variances: (M, D), prior variance of the coefficients, descending.
        noise: (M,), variance of every direction besides (sigma^2).
        weights: (M,), sum to one.
        skeleton: name of the joint layout.
        size_mm: size of the mean training person, mm: root of the sum of the squares of the mean
            limb lengths. A pose of unit size times this is in mm.
        calibration: numbers measured on validation motion, such as those of
            :func:`zoo.lifting.calibrate`.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    noise: Tensor
    weights: Tensor
    skeleton: str = "h36m_17"
    size_mm: float = 1.0
    calibration: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UsageError(f"not a pose prior: {problem}")

    def _problem(self) -> str | None:
        joints = len(get_skeleton(self.skeleton))
        if self.basis.ndim != 4:
            return f"basis has {self.basis.ndim} axes, expected (M, D, {joints}, 3)"
        m, d = self.basis.shape[:2]
        shapes = {
            "mean": (m, joints, 3), "basis": (m, d, joints, 3), "variances": (m, d),
            "noise": (m,), "weights": (m,),
        }  # fmt: skip
        for name, shape in shapes.items():
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape:
                return f"{name} has shape {tuple(value.shape)}, expected {shape}"
            if not bool(torch.isfinite(value).all()):
                return f"{name} is not finite"
        if not (bool((self.noise > 0).all()) and bool((self.variances >= 0).all())):
            return "noise must be positive and variances not negative"
        if not (math.isfinite(self.size_mm) and self.size_mm > 0):
            return f"size_mm is {self.size_mm}"
        return None

    @property
    def components(self) -> int:
        """M."""
        return self.mean.shape[0]

    @property
    def basis_size(self) -> int:
        """D."""
        return self.basis.shape[1]

    @property
    def dims(self) -> int:
        """Dimension of the space of centred poses, 3 (J - 1)."""
        return 3 * (self.mean.shape[1] - 1)

    @property
    def logdet(self) -> Tensor:
        """(M,): ln |C| of each component over the ``dims`` dimensions."""
        spread = (self.variances + self.noise[:, None]).log().sum(1)
        return spread + (self.dims - self.basis_size) * self.noise.log()

    def component(self, index: int) -> Prior:
        """The prior that has component ``index`` alone."""
        one = {name: getattr(self, name)[index : index + 1] for name in _TENSORS}
        return replace(self, **{**one, "weights": torch.ones(1, dtype=torch.float64)})

    def gaussians(self) -> list[Gaussian]:
        """The components in the coordinate-major form of :mod:`zoo.prior.alignment`."""
        return [
            Gaussian(
                self.mean[k].T.reshape(-1),
                self.basis[k].transpose(1, 2).flatten(1).T,
                self.variances[k] + self.noise[k],
                float(self.noise[k]),
                self.dims,
            )
            for k in range(self.components)
        ]

    def log_prob(self, poses: Tensor | npt.NDArray[Any], chunk: int = 8192) -> Tensor:
        """Log density of each pose, its ground-plane turn chosen to make it largest.

        Args:
            poses: (N, J, 3) in any unit, world axes, z up.
            chunk: poses a chunk.

        Returns:
            (N,) nat, a density over the 3 (J - 1) dimensions of centred poses of unit size.
        """
        models, out = self.gaussians(), []
        for part in torch.split(torch.as_tensor(poses), chunk):
            x = normalise_poses(part.to(torch.float64), self.skeleton).transpose(1, 2).flatten(1)
            best = x.new_full((len(x),), -torch.inf)
            for model in models:
                angle, _ = rotation_step(rotation_harmonics(x, model))
                joint = mixture_log_prob(turn(x, angle), models, self.weights)
                best = torch.maximum(best, joint.logsumexp(1))
            out.append(best)
        return torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws poses (count, J, 3) mm, world axes, each with a random ground-plane turn."""
        f64, shape = torch.float64, self.mean.shape[1:]
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        a = torch.randn(count, self.basis_size, dtype=f64, generator=generator)
        rest = torch.randn(count, *shape, dtype=f64, generator=generator)
        rest = (rest - rest.mean(1, keepdim=True)) * self.noise[which].sqrt()[:, None, None]
        part = torch.einsum("nd,ndji->nji", a * self.variances[which].sqrt(), self.basis[which])
        yaw = torch.rand(count, dtype=f64, generator=generator) * (2 * math.pi)
        flat = (self.mean[which] + part + rest).transpose(1, 2).flatten(1)
        return turn(flat, yaw).view(count, 3, -1).transpose(1, 2) * self.size_mm

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, first under a temporary name beside it.

        Raises:
            zoo.errors.OutputError: the folder is missing or not writable.
        """
        path = Path(path)
        about = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "skeleton": self.skeleton,
            "size_mm": repr(float(self.size_mm)),
            "calibration": json.dumps(dict(self.calibration), sort_keys=True),
        }
        data = to_bytes({n: getattr(self, n).contiguous() for n in _TENSORS}, metadata=about)
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise OutputError(f"{path}: cannot write the prior: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prior:
        """Reads a file of :meth:`save`.

        Raises:
            zoo.errors.CheckpointError: the file is missing, damaged, or not a pose prior.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; a prior is made by `zoo prior fit`")
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise CheckpointError(
                        f"{path}: not a pose prior (metadata has no format {_FORMAT!r}); "
                        "one is made by `zoo prior fit`"
                    )
                if about.get("version") != str(_VERSION):
                    raise CheckpointError(
                        f"{path}: a pose prior of version {about.get('version')}; "
                        f"this zoo reads version {_VERSION}"
                    )
                absent = sorted(set(_TENSORS) - set(file.keys()))
                if absent:
                    raise CheckpointError(f"{path}: pose prior without {', '.join(absent)}")
                tensors = {name: file.get_tensor(name).to(torch.float64) for name in _TENSORS}
            calibration = json.loads(about.get("calibration", "{}"))
            return cls(
                **tensors,
                skeleton=about["skeleton"],
                size_mm=float(about["size_mm"]),
                calibration={str(k): float(v) for k, v in calibration.items()},
            )
        except CheckpointError:
            raise
        except ZooError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except (SafetensorError, KeyError, ValueError, AttributeError, TypeError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{path}: not a readable pose prior: {reason}") from None

    @classmethod
    def placeholder(cls, components: int = 1, basis: int = 12) -> Prior:
        """An unfitted stand-in of the right shapes: standing people, random stiff directions.

        For building a model before its prior is fitted or loaded, and for tests; the same at every
        call. Skeleton ``h36m_17``.
        """
        generator = torch.Generator().manual_seed(17)
        person = torch.tensor(_STANDING, dtype=torch.float64)
        mean = normalise_poses(person)
        means, bases = [], []
        for k in range(components):
            away = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
            means.append(mean + 0.03 * k * (away - away.mean(0)))
            raw = torch.randn(basis, *mean.shape, dtype=torch.float64, generator=generator)
            flat = (raw - raw.mean(1, keepdim=True)).flatten(1)
            bases.append(torch.linalg.qr(flat.T).Q.T.reshape(raw.shape))
        spread = 0.2 * torch.arange(1, basis + 1, dtype=torch.float64) ** -0.7
        return cls(
            torch.stack(means), torch.stack(bases), spread.square().repeat(components, 1),
            torch.full((components,), 4e-4, dtype=torch.float64),
            torch.full((components,), 1 / components, dtype=torch.float64),
            size_mm=float(pose_size(person)),
        )  # fmt: skip


# A standing adult in mm, z up, facing -y, arms a little away from the body; h36m_17.
_STANDING = (
    (0, 0, 930), (-100, 0, 930), (-105, -10, 500), (-110, 10, 80), (100, 0, 930), (105, -10, 500),
    (110, 10, 80), (0, 10, 1150), (0, 10, 1420), (0, -30, 1500), (0, 0, 1620), (170, 10, 1390),
    (240, 20, 1130), (260, -30, 890), (-170, 10, 1390), (-240, 20, 1130), (-260, -30, 890),
)  # fmt: skip


def fit_prior(
    poses: Tensor | npt.NDArray[Any],
    components: int = 1,
    basis: int = 23,
    *,
    skeleton: str = "h36m_17",
    mirror: bool = True,
    init: Literal["tk", "hips"] = "tk",
    rounds: int = 3,
    grow_poses: int = 50_000,
    mixture_poses: int = 50_000,
    last_rounds: int = 3,
    exemplar_poses: int = 2000,
    exemplar_distance: float | None = None,
    em_rounds: int = 200,
    em_tolerance: float = 1e-6,
    seed: int = 0,
    chunk: int = 8192,
    progress: Callable[[FitProgress], None] | None = None,
) -> Prior:
    """Fits the pose prior to motion capture (sec. 4.1 and 4.2).

    The basis grows from 0 to ``basis``, ``rounds`` alternations of closed-form PPCA and of the
    exact ground-plane turn of every pose at each size. With more than ``grow_poses`` poses the
    growth runs on a random part of them and ``last_rounds`` alternations on all follow; EM does the
    same. The negative log-likelihood (nat a pose, reported to ``progress``) never rises on the
    same poses.

    Args:
        poses: (N, J, 3) mm, world axes, z up; an array on disk (``numpy.memmap``) is read once.
        components: M; the stop rule of the exemplars may leave fewer.
        basis: D.
        skeleton: joint layout.
        mirror: add the mirror image of every pose.
        init: first angles from a Tomasi-Kanade factorisation, or from the hips and shoulders.
        rounds: alternations at each basis size.
        grow_poses: most poses (before mirroring) in the growing phase.
        mixture_poses: most poses (before mirroring) on which EM runs to convergence.
        last_rounds: alternations, and EM rounds, on all poses where the two limits bit.
        exemplar_poses: poses among which exemplars are chosen.
        exemplar_distance: Eq. 2's stop distance, unit size; None: half the median pair distance.
        em_rounds: most EM rounds.
        em_tolerance: relative change of the log-likelihood that ends EM.
        seed: of the random parts.
        chunk: poses a chunk; bounds the memory of every pass.
        progress: called after every step.

    Returns:
        The prior, without calibration.

    Raises:
        zoo.errors.DataError: the poses have the wrong shape, are not finite, or are too few.
        zoo.errors.UsageError: a size is out of range.
    """
    bones = get_skeleton(skeleton)
    dims = 3 * (len(bones) - 1)
    if not 1 <= basis < dims:
        raise UsageError(f"basis must lie in 1..{dims - 1} for {len(bones)} joints, not {basis}")
    if components < 1:
        raise UsageError(f"components must be at least 1, not {components}")
    data, size_mm = _read_poses(poses, bones, chunk)
    if len(data) * (2 if mirror else 1) < basis + 2:
        raise DataError(f"{len(data)} poses are too few for a basis of {basis}")
    generator = torch.Generator().manual_seed(seed)
    everything = PoseSet(data, bones, mirror)
    few, _ = everything.subset(grow_poses, generator)
    sizes = [size for size in range(basis + 1) for _ in range(rounds)]
    grown = len(few) < len(everything)
    steps = 2 * len(sizes) + (2 * last_rounds if grown else 0)
    steps += 0 if components == 1 else em_rounds + (last_rounds if grown else 0)
    done = 0

    def report(stage: str) -> Callable[[int, float], None]:
        def step(size: int, nll: float) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(FitProgress(stage, done, steps, size, nll))

        return step

    model, angles = align(few, sizes, init=init, chunk=chunk, progress=report("align"))
    if grown:
        # A first pass turns every pose under the grown model; its angles need no start.
        start = torch.zeros(len(everything), dtype=torch.float64)
        model, angles = align(
            everything, [basis] * last_rounds, start=(start, model), chunk=chunk,
            progress=report("align-all"),
        )  # fmt: skip
    models, weights = [model], torch.ones(1, dtype=torch.float64)
    if components > 1:
        part, rows = everything.subset(mixture_poses, generator)
        some = torch.cat((rows, rows + len(data))) if mirror else rows
        em: dict[str, Any] = {"tolerance": em_tolerance, "chunk": chunk}
        log = report("mixture")
        models, weights = fit_mixture(
            part, angles[some], basis, components, sample=exemplar_poses,
            nearest=exemplar_distance, rounds=em_rounds, generator=generator,
            progress=lambda nll: log(basis, nll), **em,
        )  # fmt: skip
        if len(part) < len(everything):
            last = report("mixture-all")
            models, weights = fit_mixture(
                everything, angles, basis, components, start=(models, weights),
                rounds=last_rounds, progress=lambda nll: last(basis, nll), **em,
            )  # fmt: skip
    return _assemble(models, weights, skeleton, size_mm)


def _read_poses(
    poses: Tensor | npt.NDArray[Any], skeleton: Skeleton, chunk: int
) -> tuple[Tensor, float]:
    """Normalised poses (N, J, 3), float64 where the input is, else float32; and size_mm."""
    joints = len(skeleton)
    if len(poses.shape) != 3 or tuple(poses.shape[1:]) != (joints, 3):
        raise DataError(
            f"poses have shape {tuple(poses.shape)}, expected (N, {joints}, 3) for {skeleton.name}"
        )
    wide = poses.dtype in (torch.float64, np.dtype(np.float64))
    data = torch.empty(tuple(poses.shape), dtype=torch.float64 if wide else torch.float32)
    lengths = torch.zeros(joints - 1, dtype=torch.float64)
    children, parents = zip(*skeleton.bones, strict=True)
    for start in range(0, len(poses), chunk):
        rows = poses[start : start + chunk]
        if isinstance(rows, Tensor):
            part = rows.detach().to("cpu", torch.float64)
        else:
            part = torch.as_tensor(np.array(rows, dtype=np.float64))
        limbs = (part[:, list(children)] - part[:, list(parents)]).norm(dim=2)
        bad = ~torch.isfinite(part).flatten(1).all(1) | ~(limbs.sum(1) > 0)
        if bool(bad.any()):
            row = start + int(bad.nonzero()[0])
            raise DataError(f"pose {row} is not finite or has no extent")
        lengths += limbs.sum(0)
        data[start : start + chunk] = normalise_poses(part, skeleton.name).to(data.dtype)
    return data, float((lengths / max(len(poses), 1)).norm())


def _assemble(models: list[Gaussian], weights: Tensor, skeleton: str, size_mm: float) -> Prior:
    """Fixes the common yaw by the hips of the mixture's mean and stores pose-shaped tensors."""
    bones = get_skeleton(skeleton)
    joints = len(bones)

    def shaped(vectors: Tensor) -> Tensor:
        return vectors.reshape(*vectors.shape[:-1], 3, joints).transpose(-1, -2).contiguous()

    overall = shaped(torch.stack([m.mean for m in models]).T @ weights)
    line = overall[bones.index("l_hip")] - overall[bones.index("r_hip")]
    yaw = torch.atan2(line[1], line[0])
    means, bases = [], []
    for model in models:
        means.append(shaped(turn(model.mean[None], yaw[None]))[0])
        bases.append(shaped(turn(model.basis.T, yaw.expand(model.basis.shape[1]))))
    noise = torch.tensor([m.noise for m in models], dtype=torch.float64)
    eigenvalues = torch.stack([m.eigenvalues for m in models])
    return Prior(
        torch.stack(means), torch.stack(bases), (eigenvalues - noise[:, None]).clamp_min(0.0),
        noise, weights, skeleton, size_mm,
    )  # fmt: skip

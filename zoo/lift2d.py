"""``zoo.lift``: 3D poses from the 2D joints of any detector, through the pose prior.

The lift is that of Tome et al. 2017 (sec. 5.3) with what pictures of an unknown camera need beside
it: a search over the camera's pitch, one for all people of a picture, joints of other layouts, a
size in mm, and, where the camera's intrinsics are known, perspective and the place of the person.

The layouts differ. A joint made from joints that are used themselves (thorax from the shoulders)
tells nothing new and is wrong by centimetres, so it is left to the prior. Motion capture, and so
the prior, ends the head at the height of the ears: their middle stands for its head top, while a
nose, 12 cm in front of it, and the real top of the head count little.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.errors import UsageError
from zoo.keypoints import Keypoints, read_keypoints
from zoo.lifting import MIN_JOINTS, PPCALift
from zoo.pose import Pose
from zoo.prior import Prior, pose_size
from zoo.prior_files import DEFAULT_PRIOR, load_prior
from zoo.skeleton import Skeleton, get_skeleton

__all__ = ["Lifted", "lift", "lift_arrays", "lift_people", "make_lift", "mean_stature", "to_prior"]

Floats = npt.NDArray[np.float32]

PITCHES = tuple(math.radians(angle) for angle in (-20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0))
"""Camera pitches that are tried when the camera is unknown; positive looks down."""
PITCH_MEAN, PITCH_STD = math.radians(5.0), math.radians(12.0)
"""How people hold cameras, a broad guess: it decides only where the joints do not."""
GAIN = 2.0
"""Factor on the penalty: 2D noise and joints of another layout over the model's own residual."""
MIN_SCORE = 0.2
"""Joints of a lower score are treated as missing."""
METHOD = "lift"

_REFINE = 2
_PERSPECTIVE_ROUNDS = 3
_PITCH_STEP = math.radians(2.0)  # the layer keeps tables for each pitch
_SOLE_MM = 80.0  # from the sole to the ankle joint
_SHOULDER_HEIGHT = 0.818  # over stature (Drillis & Contini 1966)

# For each prior joint the ways to have it, best first: (joints of a source, weight of their mean).
# A joint that is not listed is taken from the joint of its name, with weight 1.
_WAYS: dict[str, tuple[tuple[tuple[str, ...], float], ...]] = {
    "thorax": ((("thorax",), 1.0), (("neck",), 0.5)),
    "nose": ((("upper_neck",), 0.5), (("head",), 0.5)),
    "head_top": (
        (("l_ear", "r_ear"), 0.7), (("l_ear",), 0.4), (("r_ear",), 0.4), (("head_top",), 0.3),
        (("nose",), 0.3),
    ),
}  # fmt: skip
# OpenPose has no annotated neck: it trains on the middle of the shoulders.
_NOTHING_NEW = {("openpose_25", "neck")}
# Layouts from motion capture: their head is the prior's.
_SAME_HEAD = {"h36m_17", "h36m_16", "humaneva_15", "humaneva_14"}


class Lifted(NamedTuple):
    """Poses of :func:`lift_arrays`, skeleton ``h36m_17`` (the prior's); NaN where not lifted.

    Attributes:
        joints_3d: (N, J, 3) mm, camera frame (x right, y down, z forward), pelvis at the origin.
        std_3d: (N, J) mm, standard deviation per coordinate relative to the pelvis.
        joints_2d: (N, J, 2) px, the 3D pose's own projection, hidden joints too.
        scores_2d: (N, J) in [0, 1], weight that the given joint had in the lift; 0: made by the
            prior alone.
        root_3d: (N, 3) mm, camera frame, the pelvis; None without intrinsics.
        lifted: (N,) bool.
        joints_seen: (N,) int, joints of positive weight; 5 are needed.
        component: (N,) int, chosen mixture component; -1 where not lifted.
    """

    joints_3d: Floats
    std_3d: Floats
    joints_2d: Floats
    scores_2d: Floats
    root_3d: Floats | None
    lifted: npt.NDArray[np.bool_]
    joints_seen: npt.NDArray[np.int64]
    component: npt.NDArray[np.int64]


# ---- layouts ------------------------------------------------------------------------------------


def to_prior(
    joints: npt.NDArray[Any], scores: npt.NDArray[Any], source: Skeleton, target: Skeleton
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Joints of a detector's layout as joints of the prior's, with the weights the lift takes.

    Args:
        joints: (N, J_src, 2) px.
        scores: (N, J_src) in [0, 1]; 0 is missing.
        source: layout of ``joints``.
        target: layout of the prior.

    Returns:
        (N, J, 2) px and (N, J) weights in [0, 1]: 0 where ``joints`` say nothing.
    """
    points = np.zeros((len(joints), len(target), 2))
    weights = np.zeros((len(joints), len(target)))
    for at, name in enumerate(target.joints):
        ways = _WAYS.get(name, (((name,), 1.0),))
        if source.name in _SAME_HEAD and name in source.joints:
            ways = (((name,), 1.0),)
        for parts, weight in ways:
            if any(p not in source.joints for p in parts):
                continue
            if any((source.name, p) in _NOTHING_NEW for p in parts):
                continue
            columns = [source.index(p) for p in parts]
            score = scores[:, columns].min(1)
            free = (weights[:, at] == 0) & (score > 0)
            points[free, at] = joints[free][:, columns].mean(1)
            weights[free, at] = weight * score[free]
    return points, weights


# ---- the lift -----------------------------------------------------------------------------------


def make_lift(prior: Prior | str | Path = DEFAULT_PRIOR) -> PPCALift:
    """The lift layer with the settings of :func:`lift`, to be kept when many calls follow."""
    if isinstance(prior, str):
        return _kept_lift(prior)
    return _layer(prior if isinstance(prior, Prior) else load_prior(prior))


def _layer(prior: Prior) -> PPCALift:
    return PPCALift(prior, gain=GAIN, refine=_REFINE, uncertainty=True).eval()


@lru_cache(maxsize=4)
def _kept_lift(name: str) -> PPCALift:
    return _layer(load_prior(name))


def mean_stature(prior: Prior) -> float:
    """Height in mm of the prior's mean person standing straight, from sole to crown.

    The shoulders' height over 0.818, because skeletons end the head in different places: 80 mm to
    the ankle, then the mean lengths of shin, thigh and trunk over poses drawn from the prior.
    """
    skeleton = get_skeleton(prior.skeleton)
    poses = prior.sample(2000, torch.Generator().manual_seed(0))
    poses = poses * (prior.size_mm / pose_size(poses, prior.skeleton))[:, None, None]

    def length(child: str) -> float:
        at = skeleton.index(child)
        return float((poses[:, at] - poses[:, skeleton.parents[at]]).norm(dim=1).mean())

    legs = sum(length(f"{side}_{child}") for side in "lr" for child in ("ankle", "knee")) / 2
    trunk, joint = 0.0, skeleton.index("thorax")
    while skeleton.parents[joint] >= 0:
        trunk += length(skeleton.joints[joint])
        joint = skeleton.parents[joint]
    return (_SOLE_MM + legs + trunk) / _SHOULDER_HEIGHT


def lift_arrays(
    joints_2d: npt.ArrayLike | Tensor,
    skeleton: str = "coco_17",
    *,
    visible: npt.ArrayLike | Tensor | None = None,
    scores: npt.ArrayLike | Tensor | None = None,
    min_score: float = MIN_SCORE,
    intrinsics: npt.ArrayLike | Tensor | None = None,
    world_to_camera: npt.ArrayLike | Tensor | None = None,
    height_mm: float | None = None,
    pictures: npt.ArrayLike | None = None,
    prior: Prior | PPCALift | str | Path = DEFAULT_PRIOR,
) -> Lifted:
    """Lifts N people at once; the arguments are those of :func:`lift`, the results are arrays.

    Args:
        joints_2d: see :func:`lift`.
        skeleton: see :func:`lift`.
        visible: see :func:`lift`.
        scores: see :func:`lift`.
        min_score: see :func:`lift`.
        intrinsics: see :func:`lift`.
        world_to_camera: see :func:`lift`.
        height_mm: see :func:`lift`.
        pictures: see :func:`lift`.
        prior: see :func:`lift`.

    Raises:
        zoo.errors.UsageError: shapes do not fit, or a value is out of range.
    """
    points, given = _checked(joints_2d, skeleton, visible, scores, min_score)
    layer = prior if isinstance(prior, PPCALift) else make_lift(prior)
    target = get_skeleton(layer.skeleton_name)
    y, weights = to_prior(points, given, get_skeleton(skeleton), target)
    seen = (weights > 0).sum(1)
    # Joints that all lie in one place have no pose.
    low = np.where(weights[..., None] > 0, y, np.inf).min(1)
    high = np.where(weights[..., None] > 0, y, -np.inf).max(1)
    able = (seen >= MIN_JOINTS) & ((high - low).max(1) > 1e-3)
    rows = np.flatnonzero(able)
    camera = _matrices(world_to_camera, len(y), "world_to_camera")
    lens = _matrices(intrinsics, len(y), "intrinsics")
    if lens is not None:
        _check_intrinsics(lens)
    groups = _groups(pictures, len(y))
    if height_mm is not None and not (math.isfinite(height_mm) and height_mm > 0):
        raise UsageError(f"height_mm is {height_mm}, expected a person's height in mm, like 1750")
    count = len(y)
    joints_3d, projected = _nan(count, len(target), 3), _nan(count, len(target), 2)
    std, root = _nan(count, len(target)), _nan(count, 3)
    component = np.full(count, -1, dtype=np.int64)
    if len(rows):
        size = float(layer.size_mm)
        if height_mm is not None:
            size *= height_mm / mean_stature(layer.prior)
        with torch.no_grad():
            device = layer.mean.device
            y_in, w_in, camera_in, lens_in = (
                None if a is None else torch.as_tensor(a[rows], dtype=torch.float64).to(device)
                for a in (y, weights, camera, lens)
            )
            assert y_in is not None
            assert w_in is not None
            found = _lift(layer, y_in, w_in, camera_in, lens_in, groups[rows], size)
        joints_3d[rows], std[rows], projected[rows] = (t.cpu().numpy() for t in found[:3])
        component[rows] = found[4].cpu().numpy()
        if found[3] is not None:
            root[rows] = found[3].cpu().numpy()
    return Lifted(
        joints_3d, std, projected, weights.astype(np.float32),
        None if lens is None else root, able, seen, component,
    )  # fmt: skip


def _lift(
    layer: PPCALift, y: Tensor, weights: Tensor, camera: Tensor | None, lens: Tensor | None,
    groups: npt.NDArray[np.int64], size: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:  # fmt: skip
    """3D (mm, of unit size times ``size``), std, projection, root and component."""
    if lens is None:
        view = _choose_camera(layer, y, weights, None, groups) if camera is None else camera
        result = layer(y, weights, view, uncertainty=True)
        pose, std = _sized(layer, result.pose_3d, result.std_3d, size)
        return pose, std, result.reprojection, None, result.component
    # A camera at the same place that looks at the person: there weak perspective holds best. The
    # remaining perspective is divided out, with the depths of the last round (as POSIT does).
    rays = torch.linalg.solve(lens, torch.cat((y, torch.ones_like(y[..., :1])), 2).mT).mT
    towards = (rays * weights[..., None]).sum(1) / weights.sum(1)[:, None]
    turn = _look_along(towards)
    rays = rays @ turn.mT
    # Beyond 84 degrees from the person's middle there is no image to speak of.
    u = rays[..., :2] / rays[..., 2:].clamp_min(0.1)
    if camera is None:
        view = _choose_camera(layer, u, weights, turn, groups)
    else:
        view = turn @ camera
    factor = torch.ones_like(u[..., :1])
    for number in range(_PERSPECTIVE_ROUNDS):
        last = number == _PERSPECTIVE_ROUNDS - 1
        with contextlib.nullcontext() if last else _coarse(layer):
            result = layer(u * factor, weights, view, uncertainty=last)
        pose, std = _sized(layer, result.pose_3d, result.std_3d, size)
        root = place_root(pose, u, weights)
        factor = ((pose[..., 2:] + root[:, None, 2:]) / root[:, None, 2:]).clamp(0.5, 2.0)
    camera_pose, camera_root = pose @ turn, (root[:, None] @ turn)[:, 0]
    image = (camera_pose + camera_root[:, None]) @ lens.mT
    projected = image[..., :2] / image[..., 2:].clamp_min(1.0)
    return camera_pose, std, projected, camera_root, result.component


@contextlib.contextmanager
def _coarse(layer: PPCALift) -> Iterator[None]:
    """Without the refinement of the angle: its grid will do for a choice or a first round."""
    refine, layer.refine = layer.refine, 0
    try:
        yield
    finally:
        layer.refine = refine


def _choose_camera(
    layer: PPCALift, y: Tensor, weights: Tensor, turn: Tensor | None, groups: npt.NDArray[np.int64]
) -> Tensor:
    """(N, 3, 3) camera rotations: the likeliest pitch of each group's picture, without roll.

    A pitch costs what its lifts do, summed over the people of the picture: the misfit of Eq. 4 in
    units of the noise, and the normaliser of the chosen component. A parabola through the best
    pitch and its neighbours gives the pitch between them.
    """
    scores = []
    with _coarse(layer):
        noise, logdet = layer.gain**2 * layer.noise, layer.prior.logdet.to(layer.noise.device)
        for pitch in PITCHES:
            level = _pitched(y.new_tensor([pitch]))
            view = level if turn is None else turn @ level
            result = layer(y, weights, view.expand(len(y), 3, 3), uncertainty=False)
            unit = (result.scale * layer.size_mm).square() * noise[result.component]
            scores.append(result.cost / (2 * unit) + logdet[result.component] / 2)
    angles = y.new_tensor(PITCHES)
    _, group = np.unique(groups, return_inverse=True)
    index = torch.from_numpy(group).to(y.device)
    total = y.new_zeros(int(group.max()) + 1, len(PITCHES))
    total = total.index_add(0, index, torch.stack(scores, 1))
    total = total + (angles - PITCH_MEAN).square() / (2 * PITCH_STD**2)
    best = total.argmin(1, keepdim=True).clamp(1, len(PITCHES) - 2)
    before, here, after = (total.gather(1, best + k)[:, 0] for k in (-1, 0, 1))
    bend = before - 2 * here + after
    offset = torch.where(bend > 1e-9, (before - after) / (2 * bend.clamp_min(1e-9)), 0.0)
    between = angles[best[:, 0]] + offset.clamp(-1, 1) * (angles[1] - angles[0])
    view = _pitched((between / _PITCH_STEP).round() * _PITCH_STEP)[index]
    return view if turn is None else turn @ view


def _pitched(pitch: Tensor) -> Tensor:
    """(N, 3, 3) rotations from the world (z up) to cameras that look down by ``pitch`` (N,)."""
    c, s, zero = pitch.cos(), pitch.sin(), torch.zeros_like(pitch)
    rows = (zero + 1, zero, zero, zero, -s, -c, zero, c, -s)
    return torch.stack(rows, 1).view(-1, 3, 3)


def _sized(layer: PPCALift, pose: Tensor, std: Tensor | None, size: float) -> tuple[Tensor, Tensor]:
    """The pose scaled so that its root sum of squared limb lengths is ``size`` mm."""
    own = pose_size(pose, layer.skeleton_name)
    factor = size / own
    spread = torch.zeros_like(pose[..., 0]) if std is None else std
    return pose * factor[:, None, None], spread * factor[:, None]


def place_root(pose: Tensor, rays: Tensor, weights: Tensor, steps: int = 5) -> Tensor:
    """Where a pose must stand for its joints to project onto given rays.

    Args:
        pose: (N, J, 3) mm, camera frame, relative to the root.
        rays: (N, J, 2), x / z and y / z of the joints' lines of sight.
        weights: (N, J), inverse relative std of each ray's noise; 0 is missing.
        steps: Gauss-Newton steps on the reprojection error after the linear start.

    Returns:
        (N, 3) mm, camera frame, the root.
    """
    # Linear: x_j (P_z + t_z) = P_x + t_x, likewise y; least squares in t.
    one, zero = torch.ones_like(rays[..., 0]), torch.zeros_like(rays[..., 0])
    rows = torch.stack(
        (torch.stack((one, zero, -rays[..., 0]), -1), torch.stack((zero, one, -rays[..., 1]), -1)),
        2,
    )  # (N, J, 2, 3)
    right = rays * pose[..., 2:] - pose[..., :2]  # (N, J, 2)
    root = _weighted_solve(rows, right, weights)
    far = pose[..., 2].abs().amax(1)
    for _ in range(steps):
        # A body cannot reach behind the camera.
        root = torch.cat((root[:, :2], torch.maximum(root[:, 2], 1.05 * far + 1.0)[:, None]), 1)
        at = pose + root[:, None]
        inverse = 1 / at[..., 2]
        image = at[..., :2] * inverse[..., None]
        rows = torch.stack(
            (
                torch.stack((inverse, zero, -image[..., 0] * inverse), -1),
                torch.stack((zero, inverse, -image[..., 1] * inverse), -1),
            ), 2,
        )  # fmt: skip
        root = root + _weighted_solve(rows, rays - image, weights)
    return root


def _weighted_solve(rows: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Least squares of (N, J, 2, 3) x = (N, J, 2) with weights (N, J) on the residuals."""
    a = (rows * weights[..., None, None]).flatten(1, 2)
    b = (right * weights[..., None]).flatten(1, 2)
    normal = a.mT @ a
    ridge = 1e-12 * normal.diagonal(dim1=1, dim2=2).amax(1)
    normal = normal + ridge[:, None, None] * torch.eye(3, dtype=a.dtype, device=a.device)
    return torch.linalg.solve(normal, (a.mT @ b[..., None])[..., 0])


def _look_along(direction: Tensor) -> Tensor:
    """(N, 3, 3) rotations that bring a direction (N, 3) to z: about y, then about x, no roll.

    The second angle is rounded to whole steps, so that people share the layer's tables.
    """
    x, y, z = direction.unbind(1)
    flat = torch.hypot(x, z)
    zero = torch.zeros_like(x)
    c, s = z / flat, x / flat
    down = (torch.atan2(y, flat) / _PITCH_STEP).round() * _PITCH_STEP
    cp, sp = down.cos(), down.sin()
    about_y = torch.stack((c, zero, -s, zero, zero + 1, zero, s, zero, c), 1).view(-1, 3, 3)
    about_x = torch.stack((zero + 1, zero, zero, zero, cp, -sp, zero, sp, cp), 1).view(-1, 3, 3)
    return about_x @ about_y


# ---- lists of people ----------------------------------------------------------------------------


def lift(
    joints_2d: npt.ArrayLike | Tensor | Sequence[Keypoints] | str | Path,
    skeleton: str | None = None,
    *,
    visible: npt.ArrayLike | Tensor | None = None,
    scores: npt.ArrayLike | Tensor | None = None,
    min_score: float = MIN_SCORE,
    intrinsics: npt.ArrayLike | Tensor | None = None,
    world_to_camera: npt.ArrayLike | Tensor | None = None,
    height_mm: float | None = None,
    pictures: npt.ArrayLike | None = None,
    prior: Prior | PPCALift | str | Path = DEFAULT_PRIOR,
) -> list[Pose]:
    """3D poses from 2D joints, one pose or thousands, of any detector's layout.

    Without intrinsics the camera is taken as weak perspective, and where the person stands is
    unknown. Without ``world_to_camera`` it has no roll, and the likeliest pitch.

    Args:
        joints_2d: (J, 2) or (N, J, 2) px, or with a third column of scores (J, 3), (N, J, 3);
            not finite: missing. Or people of :func:`zoo.keypoints.read_keypoints`, or the path of a
            keypoint file.
        skeleton: layout of the joints: ``coco_17`` (the default), ``mpii_16``, ``openpose_25``,
            ``halpe_26``, ``h36m_17``, ... Files and people carry their own.
        visible: (J,) or (N, J) bool; false is missing.
        scores: (J,) or (N, J) in [0, 1]: the weight of a joint.
        min_score: joints below this score are missing.
        intrinsics: (3, 3) or (N, 3, 3) px, no distortion: adds perspective and ``root_3d``.
        world_to_camera: (3, 3) or (N, 3, 3) rotation from a world with z up, if it is known.
        height_mm: the person's height from sole to head top; default: that of the mean person of
            the prior (1.74 m for the shipped ones). A picture does not tell it.
        pictures: (N,) whole numbers, equal for people of one picture, who share its camera's pitch;
            default: a camera each. Files tell it themselves.
        prior: name of a shipped prior, file of ``zoo prior fit``, a prior, or a lift layer.

    Returns:
        A pose for each person with at least 5 joints, in order; ``person`` is the index in the
        input (in the picture, for a file). Others are left out with one warning that names them.
        ``joints_2d`` are the 3D pose's own projections, hidden joints too; ``scores_2d`` is 0 for a
        joint that the prior alone has placed.

    Raises:
        zoo.errors.UsageError: shapes do not fit, unknown skeleton, or a value is out of range.
        zoo.errors.DataError: the file cannot be read.
    """
    options: dict[str, Any] = {
        "min_score": min_score, "intrinsics": intrinsics, "world_to_camera": world_to_camera,
        "height_mm": height_mm, "prior": prior,
    }  # fmt: skip
    if isinstance(joints_2d, str | Path):
        joints_2d = read_keypoints(joints_2d, skeleton)
    if isinstance(joints_2d, Sequence) and all(isinstance(k, Keypoints) for k in joints_2d):
        if visible is not None or scores is not None or pictures is not None:
            raise UsageError("people of a keypoint file carry their own scores and pictures")
        return lift_people(cast("Sequence[Keypoints]", joints_2d), **options)
    name = skeleton or "coco_17"
    result = lift_arrays(
        cast(npt.ArrayLike, joints_2d), name, visible=visible, scores=scores, pictures=pictures,
        **options,
    )  # fmt: skip
    _warn([f"person {n}" for n in np.flatnonzero(~result.lifted)], result.lifted)
    rows = [int(k) for k in np.flatnonzero(result.lifted)]
    return [_pose(result, k, None, k, prior) for k in rows]


def lift_people(people: Sequence[Keypoints], **options: Any) -> list[Pose]:
    """:func:`lift` for people of a keypoint file; its options apply.

    Returns:
        Poses in the order of ``people``, with their picture, frame, number and box.
    """
    poses: dict[int, Pose] = {}
    for name in dict.fromkeys(one.skeleton for one in people):
        rows = [k for k, one in enumerate(people) if one.skeleton == name]
        result = lift_arrays(
            np.stack([people[k].joints_2d for k in rows]), name,
            scores=np.stack([people[k].scores for k in rows]),
            pictures=[people[k].frame for k in rows], **options,
        )  # fmt: skip
        for at, k in enumerate(rows):
            if result.lifted[at]:
                prior = options.get("prior", DEFAULT_PRIOR)
                poses[k] = _pose(result, at, people[k], people[k].person, prior)
    left = [
        f"person {one.person} of {one.image or f'frame {one.frame}'}"
        for k, one in enumerate(people) if k not in poses
    ]  # fmt: skip
    _warn(left, np.array([k in poses for k in range(len(people))], dtype=bool))
    return [poses[k] for k in sorted(poses)]


def _warn(left: Sequence[str], lifted: npt.NDArray[np.bool_]) -> None:
    if not left:
        return
    names = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    warnings.warn(
        f"{len(left)} of {len(lifted)} people left out, fewer than {MIN_JOINTS} joints: {names}",
        stacklevel=3,
    )


def _pose(result: Lifted, at: int, one: Keypoints | None, person: int, prior: Any) -> Pose:
    return Pose(
        joints_3d=result.joints_3d[at],
        joints_2d=result.joints_2d[at],
        scores_2d=result.scores_2d[at],
        std_3d=result.std_3d[at],
        root_3d=None if result.root_3d is None else result.root_3d[at],
        box=None if one is None else one.box,
        person=int(person),
        frame_index=0 if one is None else one.frame,
        source="" if one is None else one.image,
        method=f"{METHOD} ({prior})" if isinstance(prior, str) else METHOD,
    )


# ---- checks -------------------------------------------------------------------------------------


def _nan(*shape: int) -> Floats:
    return np.full(shape, np.nan, dtype=np.float32)


def _array(value: Any, what: str) -> npt.NDArray[np.float64]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} is not an array of numbers") from error


def _checked(
    joints_2d: Any, skeleton: str, visible: Any, scores: Any, min_score: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(N, J, 2) px and (N, J) scores, 0 for what is missing."""
    layout = get_skeleton(skeleton)
    if not 0 <= min_score <= 1:
        raise UsageError(f"min_score is {min_score}, expected a score in [0, 1]")
    points = _array(joints_2d, "joints_2d")
    if points.size == 0 and points.ndim < 3:
        points = points.reshape(0, len(layout), 2)
    single = points.ndim == 2
    if single:
        points = points[None]
    if points.ndim != 3 or points.shape[1] != len(layout) or points.shape[2] not in (2, 3):
        raise UsageError(
            f"joints_2d has shape {points.shape[1:] if single else points.shape}, expected "
            f"({len(layout)}, 2) or (N, {len(layout)}, 2) for {layout.name}"
        )
    given = np.ones(points.shape[:2])
    if points.shape[2] == 3:
        if scores is not None:
            raise UsageError("scores are given twice: as third column of joints_2d and by name")
        scores, points = points[..., 2], points[..., :2]
    for value, what in ((scores, "scores"), (visible, "visible")):
        if value is None:
            continue
        extra = _array(value, what)
        extra = extra[None] if single and extra.ndim == 1 else extra
        if extra.shape != given.shape:
            raise UsageError(f"{what} has shape {extra.shape}, expected {given.shape}")
        extra = np.nan_to_num(extra)
        if extra.size and (extra.min() < 0 or extra.max() > 1):
            raise UsageError(f"{what} must lie in [0, 1]; the largest is {extra.max():.4g}")
        given = given * np.where(extra >= min_score, extra, 0.0)
    # Joints further out than any picture are no joints, and would cost all digits.
    real = np.isfinite(points).all(2) & (np.abs(np.nan_to_num(points)) < 1e7).all(2)
    given = np.where(real, given, 0.0)
    return np.where(given[..., None] > 0, np.nan_to_num(points), 0.0), given


def _matrices(value: Any, count: int, what: str) -> npt.NDArray[np.float64] | None:
    if value is None:
        return None
    matrix = _array(value, what)
    if matrix.shape not in ((3, 3), (count, 3, 3)) or not np.isfinite(matrix).all():
        raise UsageError(
            f"{what} has shape {matrix.shape}, expected finite (3, 3) or ({count}, 3, 3)"
        )
    return np.array(np.broadcast_to(matrix, (count, 3, 3)))


def _groups(pictures: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    if pictures is None:
        return np.arange(count)
    groups = np.asarray(pictures)
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        if count or groups.size:
            raise UsageError(f"pictures must be {count} whole numbers, one for each person")
    return groups.astype(np.int64)


def _check_intrinsics(lens: npt.NDArray[np.float64]) -> None:
    good = (lens[:, 0, 0] > 0) & (lens[:, 1, 1] > 0) & (lens[:, 2] == (0, 0, 1)).all(1)
    if not good.all():
        raise UsageError(
            "intrinsics must be [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths"
        )


def _stature_of(layer: PPCALift) -> float:
    return mean_stature(layer.prior)

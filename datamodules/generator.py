"""Human motion without a file: the 15 actions of Human3.6M, made from keyed postures and steps.

Each recording is a small choreography. Feet are planned first, as steps with stance and swing, and
the legs follow them by inverse kinematics, so a standing foot does not slide; the pelvis rides on
the legs or on a seat; hands move between keyed places (mouth, ear, hip, a thing that is pointed at)
with minimum-jerk profiles; trunk and head sway. :mod:`datamodules.choreography` holds these moves,
:mod:`datamodules.kinematics` the joint limits. Everything random is drawn from a generator keyed by
the seed and the recording's name.

The motion is plausible, not recorded: it lets everything run and be tested without a download.
Train on real motion (``--data.mocap``) for poses that people really take.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from datamodules.choreography import Scene
from datamodules.kinematics import ANKLE_HEIGHT, STANDING, solve, stack
from datamodules.motion import FPS, MotionBank
from datamodules.splits import GENERATED, SPLITS, Split
from zoo.errors import UsageError, suggest

__all__ = ["ACTIONS", "RECORDINGS", "generate"]

RECORDINGS: dict[Split, int] = {"train": 8, "val": 2, "test": 4}
"""Recordings an action for each split, by default."""


# ---- the actions --------------------------------------------------------------------------------


def _directions(s: Scene) -> None:
    s.stand(turning=0.6)
    s.hand(s.main, {"point": 0.6, "gesture": 0.2, "hang": 0.2}, (0.6, 2.0), (0.5, 1.0))
    s.hand(
        s.other, {"hang": 0.45, "point": 0.2, "hip": 0.2, "pocket": 0.15}, (1.0, 4.0), (0.5, 1.0)
    )
    s.look(0.55, (0.6, 2.0))
    s.trunk += s.vary((0.2, 0.08, 0.05), (0.8, 2.5), (0.6, 1.2))


def _discussion(s: Scene) -> None:
    s.stand(turning=0.3, restless=0.5)
    gestures = {"gesture": 0.55, "chest": 0.2, "waist": 0.25}
    if s.rng.random() < 0.5:
        s.both({**gestures, "hang": 0.15, "crossed": 0.1}, (0.2, 1.0), (0.4, 0.8))
    else:
        s.hand(s.main, gestures, (0.1, 0.8), (0.4, 0.8))
        rest = {"hang": 0.3, "pocket": 0.2, "hip": 0.25, "gesture": 0.25}
        s.hand(s.other, rest, (1.0, 4.0), (0.5, 1.0))
    s.look(0.35, (0.4, 1.5))
    s.trunk += s.vary((0.12, 0.08, 0.05), (0.6, 2.0), (0.5, 1.0))


def _eating(s: Scene) -> None:
    if s.rng.random() < 0.75:
        s.sit()
        rest = "table"
    else:
        s.stand(restless=0.3)
        rest = "waist"
    keys = s.alternate(s.main, rest, "mouth", (0.4, 1.3), (0.6, 1.1))
    s.hand(s.other, {rest: 0.7, "lap" if rest == "table" else "hang": 0.3}, (1.5, 4.0), (0.6, 1.2))
    bite = keys.follow(s.time, (np.arange(len(keys.arrive)) % 2).astype(float))
    s.head[:, 1] += 0.25 - 0.2 * bite
    s.look(0.2)


def _greeting(s: Scene) -> None:
    rng = s.rng
    s.stand(wander=220, turning=0.5, restless=0.75, hold=(1.0, 3.0))
    keys = s.keys((1.0, 2.5), (0.5, 0.9))
    kinds = rng.choice(["wave", "shake", "bow", "hang"], len(keys.arrive), p=[0.4, 0.25, 0.2, 0.15])
    names = [k if k in ("wave", "shake") else "hang" for k in kinds]
    s.move_hand(s.main, keys, np.stack([s.place(n) for n in names]))
    on = {k: keys.follow(s.time, (kinds == k).astype(float)) for k in ("wave", "shake", "bow")}
    beat = np.sin(2 * np.pi * rng.uniform(1.3, 2.4) * s.time + rng.uniform(0, 6))
    s.hands[:, s.main, 1] += on["wave"] * beat * rng.uniform(70, 140)
    s.hands[:, s.main, 2] += on["shake"] * beat * rng.uniform(25, 60)
    both = rng.random() < 0.25
    if both:
        s.hands[:, s.other], s.elbows[:, s.other] = s.hands[:, s.main], s.elbows[:, s.main]
    s.bend(on["bow"] * rng.uniform(0.4, 1.1) + 0.08 * on["shake"], np.zeros_like(s.time))
    s.look(0.3)


def _phoning(s: Scene) -> None:
    kind = s.rng.random()
    if kind < 0.45:
        s.sit()
        rest = {"lap": 0.4, "armrest": 0.3, "gesture": 0.15, "table": 0.15}
    elif kind < 0.75:
        s.stand(restless=0.5)
        rest = {"hang": 0.3, "hip": 0.25, "pocket": 0.2, "gesture": 0.25}
    else:
        s.walk((500, 900), (0.7, 0.85))
        rest = {}
    if rest:
        s.hand(s.other, rest, (1.0, 4.0), (0.5, 1.0))
    s.hand(s.main, {"ear": 0.88, "chest": 0.12}, (2.0, 5.0), (0.6, 1.0))
    tilt = s.rng.uniform(0.05, 0.25) * (1 if s.main == 0 else -1)
    s.look(0.4)
    s.head[:, 2] += tilt


def _photo(s: Scene) -> None:
    s.stand(wander=180, turning=0.5, restless=0.6)
    s.both({"eyes": 0.75, "waist": 0.15, "high": 0.1}, (1.0, 3.0), (0.5, 1.0))
    crouch = s.keys((1.5, 3.5), (0.8, 1.4))
    low = np.where(s.rng.random(len(crouch.arrive)) < 0.4, s.rng.uniform(120, 430), 0.0)
    lean = np.where(s.rng.random(len(crouch.arrive)) < 0.4, s.rng.uniform(0.1, 0.5), 0.0)
    s.bend(crouch.follow(s.time, lean), crouch.follow(s.time, low))
    s.trunk += s.vary((0.1, 0.05, 0.1), (1.0, 3.0), (0.6, 1.2))
    s.look(0.15)


def _posing(s: Scene) -> None:
    rng = s.rng
    s.stand((1.0, 2.8), 150, 0.7, width=(80, 260), stagger=140, restless=0.8)
    places = {"hip": 0.25, "scalp": 0.12, "up": 0.14, "crossed": 0.08, "chin": 0.1,
              "point": 0.12, "hang": 0.13}  # fmt: skip
    for side in (0, 1):
        s.hand(side, places, (1.0, 2.8), (0.5, 1.0))
    s.turn[:, 1:] += s.vary((0.06, 0.06), (1.0, 3.0), (0.6, 1.2))
    s.trunk += s.vary((0.25, 0.14, 0.14), (1.0, 3.0), (0.6, 1.2))
    s.pelvis[:, 2] -= np.abs(s.vary((rng.uniform(0, 110),), (1.0, 3.0), (0.8, 1.4))[:, 0])
    s.look(0.5)


def _purchases(s: Scene) -> None:
    rng = s.rng
    s.stand((1.0, 3.0), 240, 0.6, restless=0.7)
    keys = s.keys((0.6, 2.0), (0.8, 1.4))
    count = len(keys.arrive)
    low = rng.random(count) < 0.45
    names = np.where(low, "low", rng.choice(["carry", "high", "waist"], count, p=[0.5, 0.25, 0.25]))
    lean = np.where(low, rng.uniform(0.5, 1.35, count), rng.uniform(0.0, 0.15, count))
    squat = np.where(low, rng.uniform(0, 420, count), 0.0)
    alone = rng.random() < 0.4
    for side in (0, 1):
        own = ["hang" if alone and side == s.other else str(n) for n in names]
        s.move_hand(side, keys, np.stack([s.place(n) for n in own]))
    s.bend(keys.follow(s.time, lean), keys.follow(s.time, squat))
    s.look(0.25)
    s.trunk[:, 0] += s.vary((0.2,), (0.8, 2.0), (0.6, 1.2))[:, 0]


def _sitting(s: Scene) -> None:
    s.sit()
    places = {"lap": 0.35, "armrest": 0.2, "chin": 0.1, "crossed": 0.1, "table": 0.1,
              "scalp": 0.05, "gesture": 0.1}  # fmt: skip
    if s.rng.random() < 0.35:
        s.both(places, (1.2, 4.0), (0.6, 1.2))
    else:
        for side in (0, 1):
            s.hand(side, places, (1.2, 4.0), (0.6, 1.2))
    s.look(0.45)


def _sitting_down(s: Scene) -> None:
    """Stands, sits down on a chair or on the floor, stays, and gets up again."""
    rng = s.rng
    keys = s.keys((0.8, 3.0), (1.3, 2.1))
    count = len(keys.arrive)
    floor = rng.random() < 0.45
    height = rng.uniform(115, 145) if floor else rng.uniform(480, 540)
    names = ["knees up", "cross-legged", "one up", "long"] if floor else ["apart", "tucked"]
    seat = np.array([0.0, 0.0, height, 1.0])
    ahead = 460.0 if floor else rng.uniform(300, 380)  # of the seat, where the feet stand
    keyed, legs = np.zeros((count, 4)), np.zeros((count, 2, 6))
    phase = int(rng.integers(2))
    width = rng.uniform(90, 150)
    knee = [1.0, 0.3, 0.7]
    for k in range(count):
        if (k + phase) % 2:
            keyed[k] = [ahead - 20, 0.0, STANDING - 3, 0.0]
            legs[k] = [[ahead, width, ANKLE_HEIGHT, *knee]] * 2
        else:
            keyed[k] = seat
            legs[k] = s.legs(str(rng.choice(names)))
            if not floor:
                legs[k, :, 0] = np.clip(legs[k, :, 0], ahead - 60, ahead + 60)
    if not floor:  # the feet stay where they stand
        legs[:, :, :3] = legs[0, :, :3]
        legs[:, :, 0], legs[:, :, 2] = ahead, ANKLE_HEIGHT
        legs[:, :, 3:] = knee
    s.place_legs(keys, legs)
    path = keys.follow(s.time, keyed)
    seated, moving = path[:, 3], keys.bump(s.time)
    s.pelvis = path[:, :3]
    s.on_feet = False
    s.turn[:, 1] += moving * rng.uniform(0.35, 0.55) - 0.12 * seated
    s.trunk[:, 1] += moving * rng.uniform(0.2, 0.5) + (0.45 if floor else 0.1) * seated
    s.trunk += seated[:, None] * s.vary((0.12, 0.1, 0.08), (1.0, 3.0), (0.6, 1.2))
    low = "waist" if floor else "lap"
    for side in (0, 1):
        hang, sit = s.place("hang"), np.stack([s.place(low) for _ in range(count)])
        values = np.where((keyed[:, 3] > 0.5)[:, None], sit, hang)
        s.move_hand(side, keys, values)
        s.hands[:, side, 0] += moving * 180
    s.look(0.25)


def _smoking(s: Scene) -> None:
    rng = s.rng
    if rng.random() < 0.5:
        s.sit()
        rest, other = "lap", {"lap": 0.5, "armrest": 0.3, "crossed": 0.2}
    else:
        s.stand(restless=0.4)
        rest = str(rng.choice(["hang", "waist", "chest"]))
        other = {"hang": 0.35, "pocket": 0.3, "crossed": 0.2, "hip": 0.15}
    keys = s.alternate(s.main, rest, "mouth", (0.9, 3.0), (0.6, 1.1), int(rng.integers(2)))
    s.hand(s.other, other, (2.0, 6.0), (0.6, 1.2))
    puff = keys.follow(s.time, (np.arange(len(keys.arrive)) % 2).astype(float))
    s.head[:, 1] -= 0.1 * puff
    s.look(0.45, (1.0, 3.0))


def _waiting(s: Scene) -> None:
    s.stand((1.5, 4.0), 200, 0.8, restless=0.6)
    places = {"hang": 0.25, "pocket": 0.2, "hip": 0.2, "crossed": 0.15, "watch": 0.1, "behind": 0.1}
    if s.rng.random() < 0.5:
        s.both(places, (2.0, 5.0), (0.7, 1.3))
    else:
        for side in (0, 1):
            s.hand(side, places, (1.5, 5.0), (0.7, 1.3))
    s.look(0.6)


def _walk_dog(s: Scene) -> None:
    if s.rng.random() < 0.75:
        s.walk((600, 1200), (0.75, 0.95))
        s.trunk[:, 1] += s.rng.uniform(0.0, 0.15)
    else:
        s.stand((0.8, 2.5), 260, 0.6, restless=0.8)
        keys = s.keys((1.0, 2.5), (0.9, 1.5))
        deep = (s.rng.random(len(keys.arrive)) < 0.5).astype(float)
        down = keys.follow(s.time, deep)
        s.bend(down * s.rng.uniform(0.4, 1.0), down * s.rng.uniform(100, 420))
        s.hand(s.other, {"low": 0.6, "hang": 0.4}, (0.6, 2.0), (0.5, 1.0))
    s.hand(s.main, {"leash": 0.75, "shake": 0.25}, (0.8, 3.0), (0.4, 0.9))
    s.hands[:, s.main] += s.sway((3,), 30.0, (0.5, 1.5))
    s.head[:, 1] += 0.15
    s.look(0.35)


def _walking(s: Scene) -> None:
    s.walk((850, 1350), (0.82, 1.05))
    s.look(0.15)


def _walk_together(s: Scene) -> None:
    s.walk((700, 1150), (0.78, 0.95))
    if s.rng.random() < 0.4:  # hand in hand
        s.hand(s.other, {"hang": 1.0}, (3.0, 6.0), (0.8, 1.4))
        s.hands[:, s.other] += [30.0, 90.0, 15.0]
    if s.rng.random() < 0.6:
        s.hand(s.main, {"gesture": 0.5, "chest": 0.2, "hang": 0.3}, (0.4, 1.5), (0.4, 0.8))
    s.look(0.2)
    s.head[:, 0] += (1 if s.other == 1 else -1) * np.abs(
        s.vary((0.6,), (0.8, 2.5), (0.4, 0.8))[:, 0]
    )


_SCENES: dict[str, Callable[[Scene], None]] = {
    "Directions": _directions,
    "Discussion": _discussion,
    "Eating": _eating,
    "Greeting": _greeting,
    "Phoning": _phoning,
    "Photo": _photo,
    "Posing": _posing,
    "Purchases": _purchases,
    "Sitting": _sitting,
    "SittingDown": _sitting_down,
    "Smoking": _smoking,
    "Waiting": _waiting,
    "WalkDog": _walk_dog,
    "Walking": _walking,
    "WalkTogether": _walk_together,
}

ACTIONS: tuple[str, ...] = tuple(_SCENES)
"""The 15 actions, as Human3.6M names them."""


def generate(
    seed: int = 0,
    *,
    splits: Sequence[Split] = SPLITS,
    actions: Sequence[str] | None = None,
    recordings: Mapping[Split, int] | None = None,
    seconds: float = 10.0,
) -> MotionBank:
    """A bank of generated recordings called ``generated/SPLIT/ACTION_NUMBER``.

    A recording depends on the seed, its name and its length alone, not on what else is asked for.

    Args:
        seed: non-negative.
        splits: for which splits to make recordings.
        actions: names out of ``ACTIONS``; ``None`` takes all.
        recordings: recordings an action for each split; ``None`` takes ``RECORDINGS``.
        seconds: length of a recording.

    Raises:
        zoo.errors.UsageError: an unknown action or split, or nothing to make.
    """
    counts = {**RECORDINGS, **(recordings or {})}
    chosen = ACTIONS if actions is None else tuple(actions)
    for action in chosen:
        if action not in _SCENES:
            raise UsageError(suggest(action, ACTIONS, "action"))
    for split in (*splits, *counts):
        if split not in SPLITS:
            raise UsageError(suggest(split, SPLITS, "split"))
    frames = round(seconds * FPS)
    names = [
        (f"{GENERATED}{split}/{action}_{i:02d}", action)
        for split in splits for action in chosen for i in range(counts[split])
    ]  # fmt: skip
    if frames < 1 or not names or seed < 0:
        raise UsageError(
            f"nothing to generate: seed {seed}, {len(names)} recordings of {frames} frames"
        )
    tracks = []
    for name, action in names:
        scene = Scene(np.random.default_rng((seed, zlib.crc32(name.encode()))), frames)
        _SCENES[action](scene)
        tracks.append(scene.track())
    # In pieces that stay in the processor's cache.
    solved = [solve(stack(tracks[i : i + 8])) for i in range(0, len(tracks), 8)]
    joints = np.concatenate(solved)
    return MotionBank.from_recordings(
        (name, action, joints[i]) for i, (name, action) in enumerate(names)
    )

"""The One Euro filter against a plain scalar version, its limits, gaps, and poses of a video."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import UsageError
from zoo.pose import Pose
from zoo.smooth import OneEuro, PoseSmoother, smooth_poses
from zoo.track import Tracker, overlap


def plain(samples: list[tuple[float, float]], fc: float, beta: float, dc: float) -> list[float]:
    """Algorithm 1 of Casiez et al. 2012 for one number, line by line; NaN samples are skipped."""

    def alpha(rate: float, cutoff: float) -> float:
        tau = 1.0 / (2 * math.pi * cutoff)
        te = 1.0 / rate
        return 1.0 / (1.0 + tau / te)

    out: list[float] = []
    first, hat, dhat, before = True, 0.0, 0.0, 0.0
    for time, x in samples:
        if math.isnan(x):
            out.append(math.nan)
            continue
        if first:
            first, hat, dhat = False, x, 0.0
        else:
            rate = 1.0 / (time - before)
            dx = (x - hat) * rate
            a = alpha(rate, dc)
            dhat = a * dx + (1 - a) * dhat
            a = alpha(rate, fc + beta * abs(dhat))
            hat = a * x + (1 - a) * hat
        before = time
        out.append(hat)
    return out


number = st.one_of(st.floats(-2000, 2000, width=32), st.just(math.nan))


@given(
    values=st.lists(st.tuples(st.floats(0.005, 0.5), number, number), min_size=1, max_size=30),
    fc=st.floats(0.1, 10), beta=st.floats(0, 1), dc=st.floats(0.2, 5),
)  # fmt: skip
def test_it_is_the_papers_algorithm(
    values: list[tuple[float, float, float]], fc: float, beta: float, dc: float
) -> None:
    one, time, times, got = OneEuro(fc, beta, dc), 0.0, [], []
    for step, x, y in values:
        time += step
        times.append(time)
        got.append(one(np.array([x, y]), time))
    for k in range(2):
        want = plain([(t, v[k + 1]) for t, v in zip(times, values, strict=True)], fc, beta, dc)
        np.testing.assert_allclose([g[k] for g in got], want, rtol=1e-9, atol=1e-9)


def test_rest_stays_and_a_step_is_reached() -> None:
    still, one = np.full((17, 3), 123.0), OneEuro()
    for k in range(20):
        np.testing.assert_array_equal(one(still, k / 50), still)
    for k in range(20, 120):
        last = one(still + 300, k / 50)
    np.testing.assert_allclose(last, still + 300, atol=1)


def test_without_slope_it_is_a_low_pass_of_the_cutoff() -> None:
    """A sine at the cutoff frequency loses 3 dB, a slow one nothing."""
    for frequency, gain in ((2.0, 1 / math.sqrt(2)), (0.2, 0.995)):
        one, rate = OneEuro(min_cutoff=2.0, beta=0.0), 600
        times = np.arange(int(rate * 2 / frequency)) / rate
        out = np.array(
            [float(one(np.array(math.sin(2 * math.pi * frequency * t)), t)) for t in times]
        )
        assert np.abs(out[len(out) // 2 :]).max() == pytest.approx(gain, abs=0.01)


def test_speed_opens_the_filter() -> None:
    """A hand that moves at 1 m/s lags less with the slope than without."""
    lags = []
    for beta in (0.0, 0.01):
        one = OneEuro(1.0, beta)
        for k in range(100):
            last = float(one(np.array(1000.0 * k / 50), k / 50))
        lags.append(1000.0 * 99 / 50 - last)
    assert lags[0] > 130  # 1 / (2 pi) s behind
    assert 0 < lags[1] < 30


def poses(frames: int, fps: float, person: int = 0, noise: float = 20.0) -> list[Pose]:
    rng = np.random.default_rng(person)
    found = []
    for k in range(frames):
        joints = np.zeros((17, 3))
        joints[1:, 0] = 300 * math.sin(2 * math.pi * 0.5 * k / fps)
        joints[1:] += noise * rng.standard_normal((16, 3))
        found.append(Pose(joints, frame_index=k, person=person, root_3d=np.array([0, 0, 4000 + k])))
    return found


def jitter(found: list[Pose]) -> float:
    return float(np.abs(np.diff(np.stack([p.joints_3d for p in found]), 2, axis=0)).mean())


def test_poses_are_smoothed_and_keep_everything_else() -> None:
    raw = poses(100, 50)
    smooth = smooth_poses(raw, 50)
    assert jitter(smooth) < 0.35 * jitter(raw)
    clean = poses(100, 50, noise=0)
    errors = [
        np.linalg.norm(
            np.stack([p.joints_3d - c.joints_3d for p, c in zip(some, clean, strict=True)]), axis=-1
        ).mean()
        for some in (raw, smooth)
    ]
    assert errors[1] < errors[0]
    for one, other in zip(raw, smooth, strict=True):
        assert (one.frame_index, one.person) == (other.frame_index, other.person)
        assert (other.joints_3d[0] == 0).all()  # the pelvis stays at the origin
        assert other.root_3d is not None


def test_people_do_not_mix_and_a_long_gap_starts_anew() -> None:
    one, two = poses(40, 20), poses(40, 20, person=1)
    mixed = [p for pair in zip(one, two, strict=True) for p in pair]
    alone = smooth_poses(two, 20)
    for a, b in zip(smooth_poses(mixed, 20)[1::2], alone, strict=True):
        np.testing.assert_array_equal(a.joints_3d, b.joints_3d)
    short = one[:10] + one[15:]  # 5 frames of 20 a second are missing
    long = one[:10] + one[25:]
    assert not np.array_equal(smooth_poses(short, 20)[10].joints_3d, one[15].joints_3d)
    np.testing.assert_array_equal(smooth_poses(long, 20)[10].joints_3d, one[25].joints_3d)
    smoother = PoseSmoother(20)
    for k in range(500):  # who has left is forgotten
        smoother(replace(one[0], frame_index=k, person=k))
    assert len(smoother._people) <= 12


def test_missing_joints_stay_missing() -> None:
    raw = poses(6, 25)
    joints = raw[3].joints_3d.copy()
    joints[5] = np.nan
    raw[3] = replace(raw[3], joints_3d=joints)
    smooth = smooth_poses(raw, 25)
    assert np.isnan(smooth[3].joints_3d[5]).all()
    assert np.isfinite(smooth[4].joints_3d).all()
    want = plain([(k / 25, float(p.joints_3d[5, 0])) for k, p in enumerate(raw)], 1.0, 0.01, 1.0)
    np.testing.assert_allclose([p.joints_3d[5, 0] for p in smooth], want, rtol=1e-5, atol=1e-3)


def test_wrong_numbers_are_one_line() -> None:
    with pytest.raises(UsageError, match="min_cutoff is 0"):
        OneEuro(0)
    with pytest.raises(UsageError, match="beta is -1"):
        OneEuro(1, -1)
    with pytest.raises(UsageError, match="frames a second"):
        smooth_poses(poses(2, 25), 0)
    with pytest.raises(UsageError, match="did you mean one-euro"):
        smooth_poses(poses(2, 25), 25, "one-eur")
    with pytest.raises(UsageError, match="does not come after"):
        smooth_poses([poses(2, 25)[1]] * 2, 25)


# ---- who is who ---------------------------------------------------------------------------------


def at(x: float, y: float = 0.0, size: float = 10.0) -> tuple[float, float, float, float]:
    return x, y, x + size, y + size


def test_overlap() -> None:
    assert overlap(at(0), at(0)) == 1
    assert overlap(at(0), at(5)) == pytest.approx(1 / 3)
    assert overlap(at(0), at(10)) == 0
    assert overlap(at(0), at(3, 3, 4)) == pytest.approx(0.16)


def test_people_keep_their_numbers_in_any_order_of_the_boxes() -> None:
    track = Tracker(max_gap=3)
    assert track(0, [at(0), at(100)]) == [0, 1]
    assert track(1, [at(98), at(2)]) == [1, 0]
    assert track(2, [at(4)]) == [0]
    assert track(3, []) == []
    assert track(5, [at(97), at(6), at(50)]) == [1, 0, 2]  # 1 was missing for 3 frames
    assert track(9, [at(6)]) == [0]
    assert track(14, [at(6)]) == [3]  # missing for 4: someone else


def test_the_larger_overlap_wins_and_nobody_is_counted_twice() -> None:
    track = Tracker(max_gap=1)
    track(0, [at(0)])
    assert track(1, [at(6), at(1)]) == [1, 0]
    assert sorted(track(2, [at(3), at(4), at(5)])) == [0, 1, 2]

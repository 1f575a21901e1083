"""The motion generator: figures that keep their bones, bend the right way, stand and walk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.generator import ACTIONS, RECORDINGS, generate
from datamodules.kinematics import LIMITS, two_limbs
from datamodules.motion import FPS, JOINT_NAMES, MEAN_LIMB_LENGTHS, PARENTS
from datamodules.splits import split_of
from zoo.errors import UsageError

J = {name: i for i, name in enumerate(JOINT_NAMES)}
RIGHT_LEG = [J["right hip"], J["right knee"], J["right ankle"]]
LEFT_LEG = [J["left hip"], J["left knee"], J["left ankle"]]
RIGHT_ARM = [J["right shoulder"], J["right elbow"], J["right wrist"]]
LEFT_ARM = [J["left shoulder"], J["left elbow"], J["left wrist"]]


@pytest.fixture(scope="module")
def bank():
    return generate(0, splits=("train",))


def of_action(bank, action):
    return [bank.recording(i).astype(float) for i, a in enumerate(bank.actions) if a == action]


def flexion(motion, chain):
    """(F,) degrees between two limbs; 0 = straight."""
    first = motion[:, chain[1]] - motion[:, chain[0]]
    second = motion[:, chain[2]] - motion[:, chain[1]]
    cosine = (first * second).sum(-1)
    cosine /= np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def forward(motion):
    """(F, 3) horizontal unit vector to the front of the pelvis."""
    across = motion[:, J["left hip"]] - motion[:, J["right hip"]]
    front = np.stack([across[:, 1], -across[:, 0], np.zeros(len(across))], -1)
    return front / np.linalg.norm(front, axis=-1, keepdims=True)


def test_bank_is_complete_and_split_by_name():
    counts = {"train": 2, "val": 1, "test": 1}
    bank = generate(3, recordings=counts, seconds=0.5)
    assert len(ACTIONS) == 15
    assert set(bank.actions) == set(ACTIONS)
    assert len(set(bank.names)) == len(bank) == 15 * sum(counts.values())
    assert bank.num_frames == len(bank) * 25
    for split, count in counts.items():
        part = bank.split(split)
        assert len(part) == 15 * count
        assert all(split_of(name) == split for name in part.names)
    assert set(RECORDINGS) == set(counts)


def test_same_seed_same_motion_and_no_recording_depends_on_another():
    one = generate(5, actions=["Walking", "Posing"], seconds=1.0)
    again = generate(5, actions=["Walking", "Posing"], seconds=1.0)
    assert one.names == again.names
    np.testing.assert_array_equal(one.positions, again.positions)
    alone = generate(5, actions=["Posing"], splits=["test"], recordings={"test": 2}, seconds=1.0)
    np.testing.assert_allclose(
        alone.recording(1), one.subset([alone.names[1]]).recording(0), atol=1e-3
    )
    other = generate(6, actions=["Walking", "Posing"], seconds=1.0)
    assert np.abs(other.positions - one.positions).mean() > 50


def test_recordings_differ(bank):
    for action in ACTIONS:
        starts = [m[250] - m[250, :1] for m in of_action(bank, action)]
        for i in range(len(starts)):
            for k in range(i):
                assert np.linalg.norm(starts[i] - starts[k], axis=-1).mean() > 20, action


def test_bones_keep_their_length(bank):
    limbs = bank.positions[:, 1:] - bank.positions[:, PARENTS[1:]]
    assert np.isfinite(limbs).all()
    assert np.abs(np.linalg.norm(limbs, axis=-1) - MEAN_LIMB_LENGTHS).max() < 0.01


@pytest.mark.parametrize(
    ("chain", "limit"),
    [(RIGHT_LEG, "knee"), (LEFT_LEG, "knee"), (RIGHT_ARM, "elbow"), (LEFT_ARM, "elbow")],
)
def test_joint_limits(bank, chain, limit):
    bent = flexion(bank.positions.astype(float), chain)
    low, high = LIMITS[limit]
    assert bent.min() > low - 0.5
    assert bent.max() < high + 0.5


@pytest.mark.parametrize("chain", [RIGHT_LEG, LEFT_LEG])
def test_knees_never_bend_backwards(bank, chain):
    motion = bank.positions.astype(float)
    hip, knee, ankle = (motion[:, j] for j in chain)
    line = ankle - hip
    share = ((knee - hip) * line).sum(-1) / (line**2).sum(-1)
    aside = knee - hip - share[:, None] * line  # from the hip-ankle line to the knee
    # Forward when standing, up when the leg is stretched out in front of a seat.
    front = forward(motion) + np.array([0.0, 0.0, 0.6])
    assert (aside * front).sum(-1).min() > -1.0


def test_nothing_goes_through_the_floor(bank):
    heights = bank.positions[..., 2]
    assert heights[:, [3, 6]].min() > 80 - 20
    assert heights.min() > 40


def test_standing_feet_do_not_slide(bank):
    for motion in (bank.recording(i).astype(float) for i in range(len(bank))):
        ankles = motion[:, [3, 6]]
        down = (ankles[1:, :, 2] < 81) & (ankles[:-1, :, 2] < 81)
        speed = np.linalg.norm(np.diff(ankles[..., :2], axis=0), axis=-1) * FPS
        assert down.mean() > 0.1
        assert np.median(speed[down]) < 5
        assert speed[down].max() < 250  # mm/s, as a foot is being lifted or set down


def test_motion_is_smooth(bank):
    for i, name in enumerate(bank.names):
        motion = bank.recording(i).astype(float)
        assert np.linalg.norm(np.diff(motion, axis=0), axis=-1).max() * FPS < 6000, name
        assert np.linalg.norm(np.diff(motion, 2, axis=0), axis=-1).max() < 70, name


def test_walking_walks(bank):
    for motion in of_action(bank, "Walking"):
        front = forward(motion)
        velocity = np.diff(motion[:, 0], axis=0) * FPS
        ahead = (velocity * front[:-1]).sum(-1)
        assert 700 < ahead.mean() < 1500
        assert ahead.min() > 300

        def reach(joint, motion=motion, front=front):
            return ((motion[:, joint] - motion[:, 0]) * front).sum(-1)

        legs = reach(J["right ankle"]) - reach(J["left ankle"])
        arms = reach(J["right wrist"]) - reach(J["left wrist"])
        spectrum = np.abs(np.fft.rfft((legs - legs.mean()) * np.hanning(len(legs)), 5000))
        stride = np.fft.rfftfreq(5000, 1 / FPS)[spectrum.argmax()]
        assert 0.75 < stride < 1.15  # strides a second
        # Walkers pass their feet: the stride length follows from the speed.
        assert np.ptp(legs) == pytest.approx(ahead.mean() / stride, rel=0.35)
        assert np.corrcoef(legs, arms)[0, 1] < -0.6
        assert np.ptp(motion[:, 0, 2]) < 110
        bent = flexion(motion, RIGHT_LEG)
        assert bent.max() > 40
        assert bent.min() < 20


def test_sitting_sits_and_moves_its_hands(bank):
    for motion in of_action(bank, "Sitting"):
        assert 450 < motion[:, 0, 2].min()
        assert motion[:, 0, 2].max() < 600
        assert flexion(motion, RIGHT_LEG).min() > 30
        hips = motion[:, RIGHT_LEG[0]] - motion[:, RIGHT_LEG[1]]
        assert np.abs(hips[:, 2] / np.linalg.norm(hips, axis=-1)).max() < 0.6  # thighs lie
        assert np.ptp(motion[:, [13, 16]] - motion[:, 8:9], axis=0).max() > 80


def test_sitting_down_gets_down_and_up(bank):
    for motion in of_action(bank, "SittingDown"):
        height = motion[:, 0, 2]
        assert height.max() > 900
        assert height.min() < 560
        fastest = np.abs(np.diff(height)).max() * FPS
        assert fastest < 1400


def test_hands_go_where_the_action_says(bank):
    def nearest(motion):
        mouth = motion[:, J["neck/nose"]]
        wrists = motion[:, [J["left wrist"], J["right wrist"]]]
        return np.linalg.norm(wrists - mouth[:, None], axis=-1).min(-1)

    for action in ("Eating", "Smoking"):
        for motion in of_action(bank, action):
            distance = nearest(motion)
            assert distance.min() < 200, action
            assert distance.max() > 300, action  # the hand leaves the mouth again
    held = [np.mean(nearest(motion) < 220) for motion in of_action(bank, "Phoning")]
    assert np.mean(held) > 0.6


def test_poses_are_diverse(bank):
    poses = bank.positions[::10] - bank.positions[::10, :1]
    across = poses[:, 4] - poses[:, 1]
    angle = np.arctan2(across[:, 1], across[:, 0])
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = poses[..., 0].copy(), poses[..., 1].copy()
    poses[..., 0] = cos[:, None] * x + sin[:, None] * y
    poses[..., 1] = -sin[:, None] * x + cos[:, None] * y
    flat = poses.reshape(len(poses), -1).astype(float)
    power = np.linalg.svd(flat - flat.mean(0), compute_uv=False) ** 2
    explained = np.cumsum(power) / power.sum()
    # Real motion of comparable length needs 10 components for 92 % and 20 for 99 %.
    assert explained[9] < 0.97
    assert np.sqrt(power.sum() / len(flat) / 16) > 150  # mm, RMS distance from the mean pose


def test_wrong_requests_say_what_is_known():
    with pytest.raises(UsageError, match="did you mean Walking"):
        generate(0, actions=["Walkin"])
    with pytest.raises(UsageError, match="no split 'dev'"):
        generate(0, splits=["dev"])
    with pytest.raises(UsageError, match="nothing to generate"):
        generate(0, seconds=0)
    with pytest.raises(UsageError, match="seed -1"):
        generate(-1, seconds=1)


numbers = st.floats(-700, 700)
points = st.tuples(numbers, numbers, numbers)


@given(target=points, pole=points, upper=st.floats(200, 500), lower=st.floats(200, 500))
@settings(max_examples=60, deadline=None)
def test_two_limbs_reach_bend_to_the_pole_and_keep_their_lengths(target, pole, upper, lower):
    root, target, pole = np.array([10.0, -20.0, 900.0]), np.array(target), np.array(pole)
    line = target - root
    distance = np.linalg.norm(line)
    unit_pole = pole / max(np.linalg.norm(pole), 1e-9)
    sine = np.linalg.norm(np.cross(line / max(distance, 1e-9), unit_pole))
    if distance < 1 or sine < 0.02:
        return  # no plane to bend in
    middle, end = two_limbs(root, target, pole, upper, lower, (5, 150))
    assert np.linalg.norm(middle - root) == pytest.approx(upper, rel=1e-6)
    assert np.linalg.norm(end - middle) == pytest.approx(lower, rel=1e-6)
    assert 5 - 0.01 < flexion(np.stack([root, middle, end])[None], [0, 1, 2])[0] < 150.01
    bound = np.sqrt(upper**2 + lower**2 + 2 * upper * lower * np.cos(np.radians([150, 5])))
    if bound[0] < distance < bound[1]:
        np.testing.assert_allclose(end, target, atol=1e-6)
    assert (middle - root) @ (unit_pole - (unit_pole @ line) * line / distance**2) > 0

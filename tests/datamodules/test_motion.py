"""Motion files, clips, bodies, retargeting and the splits of recordings."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.bodies import LEG_LIMBS
from datamodules.motion import (
    FPS,
    JOINT_NAMES,
    LIMB_NAMES,
    MEAN_LIMB_LENGTHS,
    PARENTS,
    SUBJECTS,
    MotionBank,
    bodies,
    clip_indices,
    retarget,
    write_npz,
)
from datamodules.splits import SPLITS, base_name, split_lists, split_of
from zoo.errors import DataError, OutputError, UsageError
from zoo.skeleton import H36M_17


def person(frames=6, seed=0):
    """(frames, 17, 3) somebody of the mean body in random postures, standing on the floor."""
    rng = np.random.default_rng(seed)
    rest = np.array([
        [0, -1, 0], [0, 0, -1], [0, 0, -1], [0, 1, 0], [0, 0, -1], [0, 0, -1],
        [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1],
        [0, 1, 0], [0, 0, -1], [0, 0, -1], [0, -1, 0], [0, 0, -1], [0, 0, -1],
    ], dtype=float)  # fmt: skip
    limbs = rest + rng.normal(0, 0.25, (frames, 16, 3))
    limbs *= (MEAN_LIMB_LENGTHS / np.linalg.norm(limbs, axis=-1))[..., None]
    joints = np.zeros((frames, 17, 3))
    for joint in range(1, 17):
        joints[:, joint] = joints[:, PARENTS[joint]] + limbs[:, joint - 1]
    joints[..., 2] += 80 - joints[:, [3, 6], 2].min(-1)[:, None]
    joints[..., :2] += rng.normal(0, 500, (frames, 1, 2))
    return joints.astype(np.float32)


def file_arrays(names=("a", "b#1", "b#2"), frames=7):
    """The arrays of a valid motion file."""
    count = len(names)
    return {
        "names": np.array(names),
        "actions": np.array(["walk"] * count),
        "starts": np.arange(count, dtype=np.int64) * frames,
        "lengths": np.full(count, frames, dtype=np.int64),
        "positions": np.concatenate([person(frames, i) for i in range(count)]),
        "fps": np.array(FPS),
        "joint_names": np.array(JOINT_NAMES),
        "parents": PARENTS,
    }


def limb_lengths(joints):
    return np.linalg.norm(joints[..., 1:, :] - joints[..., PARENTS[1:], :], axis=-1)


# ---- files ----------------------------------------------------------------------------------


def test_file_round_trip(tmp_path):
    arrays = file_arrays()
    write_npz(tmp_path / "m.npz", arrays)
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    bank = MotionBank.from_npz(tmp_path / "m.npz")
    assert bank.names == ("a", "b#1", "b#2")
    assert bank.num_frames == 21
    np.testing.assert_array_equal(bank.recording(1), arrays["positions"][7:14])
    part = bank.subset(["b#2", "a"])
    assert part.names == ("b#2", "a")
    np.testing.assert_array_equal(part.recording(0), bank.recording(2))
    np.testing.assert_array_equal(part.recording(1), bank.recording(0))
    with pytest.raises(DataError, match="no recording 'b#3'; did you mean"):
        bank.subset(["b#3"])


def _spoil(key, value):
    def change(arrays):
        arrays[key] = value(arrays[key]) if callable(value) else value

    return change


def _at(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.pop("starts"), "key 'starts' is missing"),
        (_spoil("positions", lambda p: p[:, :16]), r"positions is float32 \(21, 16, 3\)"),
        (_spoil("positions", lambda p: p.astype(np.int64)), "positions is int64"),
        (_spoil("names", np.array(["a", "b"])), r"actions is <U4 \(3,\).*one text per recording"),
        (_spoil("names", np.arange(3)), "names is int64.*text"),
        (_spoil("lengths", lambda n: n.astype(float)), "lengths is float64.*whole number"),
        (_spoil("starts", _at(2, 15)), "recording 'b#2': frames 15 to 22 do not lie"),
        (_spoil("starts", _at(0, -1)), "recording 'a': frames -1 to 6"),
        (_spoil("lengths", _at(1, 0)), "recording 'b#1': frames 7 to 7"),
        (_spoil("names", np.array(["a", "b", "a"])), "two recordings are called 'a'"),
        (_spoil("fps", np.array(120)), "fps is 120; resample the motion to 50"),
        (_spoil("fps", np.array("fast")), "fps is not a number"),
        (_spoil("joint_names", lambda n: n[::-1]), "joint 0 is 'right wrist', not 'pelvis'"),
        (_spoil("joint_names", lambda n: n[:16]), "joint_names: 16 joints"),
        (_spoil("parents", _at(16, 14)), "parents is not the tree"),
        (_spoil("positions", _at((9, 3, 1), np.nan)), "recording 'b#1': frame 2 has a NaN"),
        (_spoil("positions", _at((20, 0, 0), np.inf)), "recording 'b#2': frame 6 has a NaN"),
        (_spoil("positions", lambda p: p / 1000), r"legs are 0\.875 long; positions are in mm"),
        (_spoil("positions", lambda p: p[..., [0, 2, 1]]), "the world frame has z up"),
        (_spoil("positions", lambda p: _at((slice(4, 5), 10), p[4:5, 9])(p)),
         "recording 'a': frame 4: the limb that ends at head top has no length"),
        (_spoil("names", np.array([{}, 1, 2], dtype=object)), "not a readable .npz of plain"),
    ],
)  # fmt: skip
def test_malformed_files_give_one_line(tmp_path, spoil, message):
    arrays = file_arrays()
    spoil(arrays)
    path = tmp_path / "m.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        MotionBank.from_npz(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_no_archives(tmp_path):
    with pytest.raises(DataError, match="no such motion file"):
        MotionBank.from_npz(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        MotionBank.from_npz(text)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        MotionBank.from_npz(tmp_path / "one.npy")
    whole = tmp_path / "whole.npz"
    np.savez(whole, **file_arrays())
    cut = tmp_path / "cut.npz"
    data = whole.read_bytes()
    cut.write_bytes(data[:-2000])
    with pytest.raises(DataError, match="damaged"):
        MotionBank.from_npz(cut)
    write_npz(whole, file_arrays())
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    cut.write_bytes(data)
    with pytest.raises(DataError, match="not a readable"):
        MotionBank.from_npz(cut)
    empty = file_arrays()
    for key in ("names", "actions", "starts", "lengths"):
        empty[key] = empty[key][:0]
    np.savez(whole, **empty)
    with pytest.raises(DataError, match="holds no recording"):
        MotionBank.from_npz(whole)


def test_writing_leaves_nothing_behind(tmp_path):
    kept = tmp_path / "m.npz"
    kept.write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError):
        write_npz(kept, {"bad": _Explodes()})
    assert kept.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [kept]
    with pytest.raises(OutputError, match="cannot be written"):
        write_npz(tmp_path / "no" / "m.npz", file_arrays())


class _Explodes:
    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError


# ---- clips ----------------------------------------------------------------------------------


def two_recordings():
    """Recording i, frame f has x = 1000 i + f^2 everywhere."""
    rows = [
        np.broadcast_to((1000.0 * i + np.arange(n) ** 2)[:, None, None], (n, 17, 3))
        for i, n in ((0, 9), (1, 4))
    ]
    return MotionBank.from_recordings((f"r{i}", "walk", row) for i, row in enumerate(rows))


def test_clip_centre_and_edges():
    bank = two_recordings()
    # 10 fps takes every fifth frame; index 5 // 2 is the centre; ends repeat the edge frame.
    clip = bank.clip(0, 4, 5, 10.0)
    np.testing.assert_array_equal(clip[:, 3, 1], [0, 0, 16, 64, 64])
    np.testing.assert_array_equal(bank.clip(0, 7, 4, 50.0)[:, 0, 0], [25, 36, 49, 64])
    np.testing.assert_array_equal(bank.clip(1, 3, 1, 3.0)[:, 0, 0], [1009])
    for frames, rate in ((0, 10.0), (3, 0.0), (3, -1.0), (2, float("nan"))):
        with pytest.raises(UsageError, match="at least one frame and a positive rate"):
            bank.clip(0, 0, frames, rate)


@given(
    which=st.lists(st.integers(0, 1), min_size=1, max_size=6),
    frames=st.integers(1, 7),
    rate=st.floats(3, 120),
    data=st.data(),
)
@settings(max_examples=60)
def test_clips_equal_a_plain_interpolation_and_stay_in_their_recording(which, frames, rate, data):
    bank = two_recordings()
    centres = [data.draw(st.integers(0, int(bank.lengths[i]) - 1)) for i in which]
    clips = bank.clips(which, centres, frames, rate)
    assert clips.shape == (len(which), frames, 17, 3)
    assert clips.dtype == np.float32
    for clip, i, centre in zip(clips, which, centres, strict=True):
        own = bank.recording(i)[:, 0, 0]
        at = centre + (np.arange(frames) - frames // 2) * FPS / rate
        expected = np.interp(at, np.arange(len(own)), own)
        np.testing.assert_allclose(clip[:, 5, 2], expected, rtol=1e-5, atol=1e-3)


def test_clip_indices_broadcast():
    indices = clip_indices(np.array([[10], [3]]), np.array([[0, 9], [0, 2]]), 3, 2.5)
    assert indices.shape == (2, 2, 3)
    np.testing.assert_allclose(indices[0, 1], [6.5, 9, 9])
    np.testing.assert_allclose(indices[1, 0], [0, 0, 2])


def test_centres_list_every_recording():
    which, frames = two_recordings().centres(step=3, first=1)
    assert list(zip(which, frames, strict=True)) == [(0, 1), (0, 4), (0, 7), (1, 1)]


# ---- bodies and retargeting -----------------------------------------------------------------


def test_bodies_are_deterministic_and_disjoint():
    everyone = {split: bodies(split) for split in SPLITS}
    assert everyone == {split: bodies(split) for split in SPLITS}
    assert [len(everyone[s]) for s in SPLITS] == [40, 8, 16]
    assert {b.subject for b in everyone["test"]} == {9, 11}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(SUBJECTS[one]) & set(SUBJECTS[other])
        assert not {b.limb_lengths for b in everyone[one]} & {
            b.limb_lengths for b in everyone[other]
        }
    assert bodies(5) == [b for b in everyone["train"] if b.subject == 5]
    assert bodies(5, per_subject=3) == bodies(5)[:3]
    assert bodies(5, seed=1) != bodies(5)
    assert len({b.clothing_seed for group in everyone.values() for b in group}) == 64
    with pytest.raises(UsageError, match="no subject 3"):
        bodies(3)
    with pytest.raises(UsageError, match="no split 'validation'"):
        bodies("validation")


def test_bodies_are_symmetric_people_of_varied_size():
    group = [b for split in SPLITS for b in bodies(split, per_subject=30)]
    lengths = np.stack([b.lengths for b in group])
    assert lengths.dtype == np.float32
    left = [LIMB_NAMES.index(n) for n in LIMB_NAMES if n.startswith("l_")]
    right = [LIMB_NAMES.index("r_" + LIMB_NAMES[i][2:]) for i in left]
    np.testing.assert_array_equal(lengths[:, left], lengths[:, right])
    ratio = lengths / MEAN_LIMB_LENGTHS
    assert np.abs(ratio - 1).max() < 0.125
    assert 0.03 < ratio.std(0).min() < ratio.std(0).max() < 0.07
    # Tall people have long arms.
    stature = np.array([b.stature for b in group])
    assert min(np.corrcoef(stature, lengths.T)[0, 1:]) > 0.85
    girths = np.array([[b.girth_limb, b.girth_torso, b.girth_head] for b in group])
    assert girths.min() > 0.7
    assert girths.max() < 1.4


def test_retarget_to_own_lengths_changes_nothing():
    motion = person(20)
    again = retarget(motion, PARENTS, MEAN_LIMB_LENGTHS)
    assert again.dtype == np.float32
    np.testing.assert_allclose(again, motion, atol=0.01)


@given(seed=st.integers(0, 50), scale=st.floats(0.8, 1.2))
@settings(max_examples=25)
def test_retarget_keeps_directions_and_takes_the_lengths(seed, scale):
    motion = person(4, seed)
    rng = np.random.default_rng(seed)
    lengths = (MEAN_LIMB_LENGTHS * scale * rng.uniform(0.95, 1.05, 16)).astype(np.float32)
    moved = retarget(motion, PARENTS, lengths)
    np.testing.assert_allclose(limb_lengths(moved), np.tile(lengths, (4, 1)), rtol=1e-4)

    def directions(joints):
        limbs = joints[:, 1:] - joints[:, PARENTS[1:]]
        return limbs / np.linalg.norm(limbs, axis=-1, keepdims=True)

    np.testing.assert_allclose(directions(moved), directions(motion), atol=1e-4)


def test_retarget_scales_a_uniformly_larger_body_as_a_whole():
    motion = person(5)
    np.testing.assert_allclose(
        retarget(motion, PARENTS, MEAN_LIMB_LENGTHS * np.float32(1.1)), motion * 1.1, rtol=1e-4,
        atol=0.02,
    )  # fmt: skip


def test_retarget_takes_a_body_per_clip():
    clips = np.stack([person(5, i) for i in range(3)])
    lengths = np.stack([b.lengths for b in bodies(9)[:3]])
    together = retarget(clips, PARENTS, lengths[:, None])
    for i in range(3):
        np.testing.assert_allclose(together[i], retarget(clips[i], PARENTS, lengths[i]), atol=1e-2)


def test_the_lower_foot_carries_the_body():
    """Other proportions of thigh and shin bring the feet elsewhere; the lower one must not move."""
    source = MotionBank.generated(0, splits=("val",), actions=["Walking"]).recording(0)
    lengths = MEAN_LIMB_LENGTHS.copy()
    lengths[[1, 4]] *= 1.08
    lengths[[2, 5]] *= 0.92
    ratio = lengths[LEG_LIMBS].sum() / MEAN_LIMB_LENGTHS[LEG_LIMBS].sum()
    moved = retarget(source, PARENTS, lengths)
    for ankle, other in ((3, 6), (6, 3)):
        carries = source[:, other, 2] - source[:, ankle, 2] > 80
        assert carries.sum() > 20
        off = np.linalg.norm(moved[carries, ankle] - ratio * source[carries, ankle], axis=-1)
        swung = np.linalg.norm(moved[carries, other] - ratio * source[carries, other], axis=-1)
        assert off.max() < 4
        assert swung.max() > 12  # halves of it would show at the other foot


def test_planted_feet_stay_planted():
    bank = MotionBank.generated(0, splits=("val",), actions=["Walking", "Purchases", "Sitting"])
    for body in bodies(9)[:3]:
        ratio = body.lengths[LEG_LIMBS].sum() / MEAN_LIMB_LENGTHS[LEG_LIMBS].sum()
        for i in range(len(bank)):
            source = bank.recording(i)
            moved = retarget(source, PARENTS, body.lengths)
            lower = moved[:, [3, 6], 2].min(-1)
            assert np.abs(lower - ratio * source[:, [3, 6], 2].min(-1)).max() < 15
            # The foot that stands in the source hardly moves on the new body.
            for ankle, other in ((3, 6), (6, 3)):
                alone = (source[:, ankle, 2] < 81) & (source[:, other, 2] > 130)
                pairs = alone[1:] & alone[:-1]
                if pairs.any():
                    step = np.linalg.norm(np.diff(moved[:, ankle, :2], axis=0), axis=-1)[pairs]
                    assert np.median(step) * FPS < 60  # mm/s
    assert H36M_17.joints[3] == "r_ankle"


# ---- splits ---------------------------------------------------------------------------------


def test_lists_are_disjoint_and_parts_stay_together():
    lists = split_lists()
    assert len(lists) == 95
    assert all(base_name(name) == name for name in lists)
    assert {split_of(name) for name in lists} == set(SPLITS)
    assert split_of("cmu/01_12#1") == split_of("cmu/01_12#2") == lists["cmu/01_12"]


def test_split_of_a_file_with_the_listed_names(tmp_path):
    names = []
    for name in split_lists():
        parts = name in ("cmu/01_03", "cmu/01_06", "cmu/01_07", "cmu/01_12", "cmu/01_14")
        names += [f"{name}#1", f"{name}#2"] if parts else [name]
    assert len(names) == 100
    write_npz(tmp_path / "m.npz", file_arrays(names, frames=2))
    bank = MotionBank.from_npz(tmp_path / "m.npz")
    parts = {split: {base_name(n) for n in bank.split(split).names} for split in SPLITS}
    assert sum(len(bank.split(split)) for split in SPLITS) == 100
    for one, other in itertools.combinations(SPLITS, 2):
        assert not parts[one] & parts[other]

    def actions(names):
        return {n.split("/")[1] if n.startswith("convseq") else "cmu" for n in names}

    assert actions(parts["test"]) == actions(parts["train"])


def test_other_recordings_are_dealt_out_by_name():
    names = [f"cmu/{subject:02d}_{take:02d}" for subject in range(3, 145) for take in range(1, 21)]
    share = {s: np.mean([split_of(n) == s for n in names]) for s in SPLITS}
    assert share["train"] == pytest.approx(0.7, abs=0.03)
    assert share["val"] == pytest.approx(0.1, abs=0.03)
    assert share["test"] == pytest.approx(0.2, abs=0.03)
    assert all(split_of(f"{n}#1") == split_of(f"{n}#7") == split_of(n) for n in names[:100])
    # The deal is fixed for good: a changed hash would mix trained-on recordings into the test.
    assert [split_of(n) for n in names[:8]] == FIRST_DEALT


FIRST_DEALT = ["test", "train", "train", "val", "val", "train", "train", "train"]

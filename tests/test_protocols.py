"""Protocols: complete definitions, and the differences between papers."""

from __future__ import annotations

import dataclasses
import json

import pytest

from zoo.errors import UsageError
from zoo.protocols import PROTOCOLS, Protocol, get_protocol
from zoo.skeleton import H36M_17, get_skeleton


def test_the_agreed_names_exist() -> None:
    assert set(PROTOCOLS) == {
        "p1-10fps", "p1-2fps", "p2-tome", "p3-tome", "p2-wang", "p3-wang",
        "synthetic-val", "synthetic-test",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_definition_says_everything(name: str) -> None:
    protocol = get_protocol(name)
    text = protocol.definition
    assert "\n" not in text
    assert text.startswith(f"{name}: {protocol.dataset}")
    for subject in (*protocol.train_subjects, *protocol.test_subjects):
        assert subject in text
    for camera in protocol.cameras:
        assert camera in text
    assert ("all cameras" in text) == (not protocol.cameras)
    assert ("every frame" in text) == (protocol.frame_step == 1)
    if protocol.fps is not None:
        assert f"{protocol.fps:g} fps" in text
    assert ("root counted" in text) == protocol.root_counted
    assert ("similarity" in text) == (protocol.alignment == "procrustes")
    assert ("over the actions" in text) == (protocol.aggregation == "actions")
    for exclusion in protocol.exclusions:
        assert str(exclusion) in text
    assert set(protocol.joints or ()) <= set(H36M_17.joints)
    # The root's own field does not contradict the list of joints.
    if protocol.joints is not None:
        assert protocol.root_counted == ("pelvis" in protocol.joints)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_as_dict_is_plain_json(name: str) -> None:
    protocol = get_protocol(name)
    loaded = json.loads(json.dumps(protocol.as_dict()))
    assert loaded["definition"] == protocol.definition
    assert loaded["test_subjects"] == list(protocol.test_subjects)
    assert set(loaded) == {f.name for f in dataclasses.fields(Protocol)} | {"definition"}


def test_the_papers_protocols_by_content() -> None:
    p1, p1_slow = get_protocol("p1-10fps"), get_protocol("p1-2fps")
    assert (p1.frame_step, p1_slow.frame_step) == (5, 25)
    assert p1.alignment == p1_slow.alignment == "translation"
    # Tome's #2 and Wang's #3 test the same frames with another error; so do #3 and #2 but for the
    # rate.
    tome2, wang3 = get_protocol("p2-tome"), get_protocol("p3-wang")
    assert tome2.test_subjects == wang3.test_subjects == ("S11",)
    assert tome2.frame_step == wang3.frame_step == 64
    assert (tome2.alignment, wang3.alignment) == ("procrustes", "translation")
    assert "S9" in wang3.train_subjects
    tome3, wang2 = get_protocol("p3-tome"), get_protocol("p2-wang")
    assert tome3.cameras == wang2.cameras
    assert len(tome3.cameras) == 1
    assert tome3.trials == wang2.trials == (1,)
    assert (tome3.frame_step, wang2.frame_step) == (1, 5)
    assert (tome3.alignment, wang2.alignment) == ("procrustes", "translation")
    for protocol in (tome2, tome3):
        assert protocol.joints is not None
        assert set(H36M_17.joints) - set(protocol.joints) == {"pelvis", "spine", "nose"}
    for protocol in (wang2, wang3):
        assert protocol.joints == get_skeleton("h36m_16").joints
    for protocol in PROTOCOLS.values():
        if protocol.fps is not None:
            assert protocol.fps * protocol.frame_step == 50
        assert not set(protocol.train_subjects) & set(protocol.test_subjects)


def test_typos_are_answered_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match="did you mean p1-10fps"):
        get_protocol("p1_10fps")
    with pytest.raises(UsageError, match="no alignment 'rigid'"):
        dataclasses.replace(get_protocol("p1-10fps"), alignment="rigid")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="frame_step 0"):
        dataclasses.replace(get_protocol("p1-10fps"), frame_step=0)


def test_a_protocol_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_protocol("p1-10fps").frame_step = 1  # type: ignore[misc]

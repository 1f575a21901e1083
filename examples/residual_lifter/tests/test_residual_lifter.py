"""The zoo's conformance kit on this plugin, and what the network promises besides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from zoo_residual_lifter import ResidualLifter

import zoo.testing


@pytest.mark.parametrize("check", zoo.testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[type[ResidualLifter]], None]) -> None:
    check(ResidualLifter)


def test_the_paper_s_network_has_the_paper_s_size() -> None:
    """4.29 M parameters at 1024 (two blocks), here with one input flag more a joint."""
    model = ResidualLifter()
    weights = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in weights] == [
        (51, 1024), (1024, 1024), (1024, 1024), (1024, 1024), (1024, 1024), (1024, 51),
    ]  # fmt: skip
    assert 4.2e6 < sum(p.numel() for p in model.parameters()) < 4.4e6


def test_rows_of_weights_keep_their_norm_below_one() -> None:
    model = ResidualLifter(hidden=8, max_norm=1.0)
    with torch.no_grad():
        model.first.weight.mul_(100)
        small = model.last.weight.mul_(1e-3).clone()
    model.clip_weights()
    assert torch.allclose(model.first.weight.norm(dim=1), torch.ones(8))
    assert torch.equal(model.last.weight, small)


def test_noise_and_missing_joints_come_in_training_alone() -> None:
    model = ResidualLifter(hidden=8, dropout=0.0, noise_2d=4.0, missing_2d=6)
    joints = torch.zeros(4000, 1, 17, 2)
    valid = torch.ones(4000, 1, 17, dtype=torch.bool)
    same, all_of_them = model.eval().disturbed(joints, valid)
    assert torch.equal(same, joints)
    assert bool(all_of_them.all())
    noisy, some = model.train().disturbed(joints, valid)
    spread = noisy.flatten(1).std(1)  # uniform on 0..4 over the samples
    assert spread.max() < 6
    assert abs(float(spread.mean()) - 2.0) < 0.1
    hidden = (~some).sum(-1)
    assert sorted(hidden.unique().tolist()) == [0, 1, 2, 3, 4, 5, 6]
    assert abs(float(hidden.float().mean()) - 3.0) < 0.15


@pytest.mark.parametrize("flags", [{"noise_2d": -1.0}, {"missing_2d": -1}, {"blocks": -1}])
def test_wrong_settings_are_one_line(flags: dict[str, float]) -> None:
    with pytest.raises(zoo.ZooError, match=next(iter(flags))):
        ResidualLifter(**flags)

"""Convolutional pose machines: the papers' sizes, shapes, first weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.cpm import CPMTrunk, NineCPM, VggCPM, centre_map
from zoo.errors import UsageError


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def multiply_adds(call):
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops() / 2, result


def run(machine, image, centre):
    maps, features = machine.begin(image)
    outputs = [maps]
    for stage in range(1, machine.stages):
        outputs.append(machine.refine(stage, outputs[-1], features, centre))
    return outputs


def small_vgg(**changes):
    return VggCPM(
        5, **{"stages": 3, "channels": [[4], [6], [8, 8]], "head": 8, "width": 6} | changes
    )


def small_nine(**changes):
    return NineCPM(5, **{"stages": 3, "channels": [4, 6, 8, 5], "head": 8, "width": 6} | changes)


def test_trunk_is_fifteen_convolutions_of_nine_million_parameters():
    with torch.device("meta"):
        trunk = CPMTrunk()
        features = trunk(torch.empty(1, 3, 368, 368))
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 15
    assert parameters(trunk) == 9_110_720
    assert features.shape == (1, 128, 46, 46)
    assert (trunk.out_channels, trunk.stride) == (128, 8)


@pytest.mark.parametrize(
    ("build", "outputs", "million", "giga"),
    [(VggCPM, 18, 29.95, 88.6), (VggCPM, 15, 29.85, 88.4), (NineCPM, 18, 31.46, 175.9)],
)
def test_the_papers_sizes(build, outputs, million, giga):
    with torch.device("meta"):
        machine = build(outputs)
        image, centre = torch.empty(1, 3, 368, 368), torch.empty(1, 1, 46, 46)
        counted, maps = multiply_adds(lambda: run(machine, image, centre))
    assert len(maps) == 6
    assert all(m.shape == (1, outputs, 46, 46) for m in maps)
    assert parameters(machine) / 1e6 == pytest.approx(million, abs=0.005)
    assert counted / 1e9 == pytest.approx(giga, abs=0.06)


def test_costs_of_the_vgg_parts():
    with torch.device("meta"):
        machine = VggCPM(18)
        image, centre = torch.empty(1, 3, 368, 368), torch.empty(1, 1, 46, 46)
        trunk, features = multiply_adds(lambda: machine.trunk(image))
        first, maps = multiply_adds(lambda: machine.first(features))
        later, _ = multiply_adds(lambda: machine.refine(1, maps, features, centre))
    assert parameters(machine.first) / 1e6 == pytest.approx(0.075, abs=0.0005)
    assert parameters(machine.later[0]) / 1e6 == pytest.approx(4.15, abs=0.005)
    assert trunk / 1e9 == pytest.approx(44.5, abs=0.06)
    assert first / 1e9 == pytest.approx(0.16, abs=0.005)
    assert later / 1e9 == pytest.approx(8.79, abs=0.006)


@pytest.mark.parametrize("build", [small_vgg, small_nine])
def test_every_parameter_matters_to_the_last_stages_alone(build):
    machine = build().eval()
    image = torch.rand(2, 3, 32, 32)
    centre = centre_map(32, machine.stride, 5.0)
    maps = run(machine, image, centre)
    assert all(m.shape == (2, 5, 32 // machine.stride, 32 // machine.stride) for m in maps)
    (maps[-1].square().sum() * 1e6).backward()
    dead = [n for n, p in machine.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("build", [small_vgg, small_nine])
def test_later_stages_look_at_maps_and_centre(build):
    machine = build().eval()
    centre = centre_map(32, machine.stride, 5.0)
    maps, features = machine.begin(torch.rand(1, 3, 32, 32))
    out = machine.refine(1, maps, features, centre)
    assert not torch.equal(out, machine.refine(1, maps + 1, features, centre))
    assert not torch.equal(out, machine.refine(1, maps, features, centre + 1))
    assert not torch.equal(out, machine.refine(2, maps, features, centre))


def test_one_stage_is_enough():
    for build in (small_vgg, small_nine):
        machine = build(stages=1)
        assert len(run(machine, torch.rand(1, 3, 32, 32), None)) == 1


def test_nine_by_nine_tower_is_shared_and_the_first_stage_has_its_own():
    machine = small_nine(stages=4)
    kernels = [m.kernel_size[0] for m in machine.tower if isinstance(m, nn.Conv2d)]
    assert kernels == [9, 9, 9]
    assert len(machine.features) == len(machine.later) == 3
    before = machine.tower[0].weight
    assert all(p is not before for p in machine.first.parameters())


def test_he_keeps_the_signal_alive_where_cpms_own_weights_let_it_die():
    image = torch.rand(1, 3, 32, 32)
    spread = {}
    for init in ("he", "gaussian"):
        torch.manual_seed(0)
        spread[init] = float(CPMTrunk([[16] * 5, [16] * 5, [16] * 5], init)(image).detach().std())
    assert 0.02 < spread["he"] < 5
    assert spread["gaussian"] < 1e-6
    last = small_vgg(init="he", head=2000).first[-1]
    assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not last.bias.any()


def test_centre_map_is_the_mean_of_a_gaussian_over_windows_of_nine_pixels():
    centre = centre_map(368, 8, 21.0)
    assert centre.shape == (1, 1, 46, 46)
    axis = torch.arange(368, dtype=torch.float64) - 183.5
    bell = torch.exp(-0.5 * (axis / 21) ** 2)
    means = torch.stack([bell[8 * k : 8 * k + 9].mean() for k in range(46)])
    torch.testing.assert_close(centre[0, 0].double(), means.outer(means), atol=1e-6, rtol=1e-5)
    assert (centre == centre.max()).nonzero().tolist() == [[0, 0, 22, 22]]


def test_wrong_sizes_are_named():
    with pytest.raises(UsageError, match="groups"):
        CPMTrunk([[4], []])
    with pytest.raises(UsageError, match="stages"):
        small_vgg(stages=0)
    with pytest.raises(UsageError, match="tower"):
        NineCPM(5, channels=[4])

"""The tied autoencoder against autograd, an untied twin, PCA, and itself in other units."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from zoo.autoencoder import LinearDecoder, TiedAutoencoder, corrupted
from zoo.errors import UsageError


def autoencoder(*hidden: int, size: int = 7, relu: bool = False, seed: int = 0) -> TiedAutoencoder:
    torch.manual_seed(seed)
    model = TiedAutoencoder(size, hidden, relu)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


# ---- tied weights -------------------------------------------------------------------------------


def test_sizes_are_the_papers():
    for hidden, parameters in (([2000], 104_051), ([300, 300], 106_251)):
        model = TiedAutoencoder(51, hidden)
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_weights_stay_tied_through_training_saving_and_loading():
    model = autoencoder(9, 5)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    clean = torch.randn(32, 7)
    before = [layer.weight.detach().clone() for layer in model.layers]
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(clean, 0.1, 0.01).backward()
        optimizer.step()
    again = TiedAutoencoder(7, [9, 5])
    again.load_state_dict(model.state_dict())
    for network in (model, again):
        decoder = network.decoder_weights()
        for layer, (weight, _), old in zip(
            reversed(list(network.layers)), decoder, reversed(before), strict=True
        ):
            assert weight.data_ptr() == layer.weight.data_ptr()
            assert torch.equal(weight, layer.weight.t())
            assert not torch.equal(layer.weight, old)
    assert torch.equal(model(clean), again(clean))
    assert sum("weight" in key for key in model.state_dict()) == 2


def test_gradient_of_a_tied_weight_is_the_sum_of_both_directions():
    model = autoencoder(9, 5)
    clean = torch.randn(16, 7)
    (model(clean) - clean).square().sum(dim=1).mean().backward()
    layers = list(model.layers)
    encoder = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    decoder = [layer.weight.detach().t().clone().requires_grad_() for layer in layers]
    h: Tensor = clean
    for layer, weight in zip(layers, encoder, strict=True):
        h = functional.relu(functional.linear(h, weight, layer.encoder_bias.detach()))
    for layer, weight in zip(reversed(layers), reversed(decoder), strict=True):
        h = functional.linear(h, weight, layer.decoder_bias.detach())
    (h - clean).square().sum(dim=1).mean().backward()
    for layer, up, down in zip(layers, encoder, decoder, strict=True):
        torch.testing.assert_close(layer.weight.grad, up.grad + down.grad.t())


# ---- the penalty --------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    hidden=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    size=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_penalty_is_autograds_jacobian(hidden: list[int], size: int, seed: int):
    model = autoencoder(*hidden, size=size, seed=seed).double()
    x = torch.randn(3, size, dtype=torch.float64)
    closed = model.jacobian_penalty(x)
    for row, value in zip(x, closed, strict=True):
        jacobian = torch.autograd.functional.jacobian(model.encode, row)
        torch.testing.assert_close(value, jacobian.square().sum())


@pytest.mark.parametrize("hidden", [(9,), (9, 5)])
def test_penalty_has_autograds_gradient(hidden: tuple[int, ...]):
    model = autoencoder(*hidden).double()
    x = torch.randn(4, 7, dtype=torch.float64)
    model.jacobian_penalty(x).sum().backward()
    closed = [layer.weight.grad.clone() for layer in model.layers]
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(model.encode, row, create_graph=True)
        total = total + jacobian.square().sum()
    total.backward()
    for layer, gradient in zip(model.layers, closed, strict=True):
        torch.testing.assert_close(layer.weight.grad, gradient)
        assert layer.encoder_bias.grad is None or not layer.encoder_bias.grad.any()


def test_probes_estimate_the_penalty_without_bias():
    model = autoencoder(20, 10)
    x = torch.randn(4, 7)
    estimate = model.jacobian_penalty(x, probes=20_000)
    torch.testing.assert_close(estimate, model.jacobian_penalty(x), rtol=0.05, atol=0)


def test_a_greedy_layer_has_its_own_jacobian_and_leaves_the_layers_below_alone():
    model = autoencoder(9, 5).double()
    clean = torch.randn(6, 7, dtype=torch.float64)
    noise = torch.randn(6, 9, dtype=torch.float64)
    errors, penalty = model.layer_terms(1, clean, 0.2, 0.3, noise)
    below, layer = model.encode(clean, 1), model.layers[1]
    noisy = below + 0.2 * noise
    expected = layer.decode(layer.encode(noisy)) - below
    torch.testing.assert_close(errors, expected.square())
    jacobian = torch.autograd.functional.jacobian(layer.encode, noisy[0])
    torch.testing.assert_close(penalty[0], 0.3 * jacobian.square().sum())
    (errors.sum() + penalty.sum()).backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    assert all(p.grad is not None for p in model.layers[1].parameters())


# ---- units, PCA, denoising ----------------------------------------------------------------------


def test_another_unit_scales_the_loss_exactly():
    """Noise s / c, lambda / c^2, biases / c: the loss is that in mm over c^2."""
    c = 300.0
    large = autoencoder(9, 5).double()
    small = autoencoder(9, 5).double()
    for layer in small.layers:
        for bias in (layer.encoder_bias, layer.decoder_bias):
            bias.data /= c
    clean, noise = 400 * torch.randn(8, 7).double(), torch.randn(8, 7).double()
    loss = [
        sum(term.sum() for term in model.terms(clean / unit, 40 / unit, 0.1 / unit**2, noise))
        for model, unit in ((large, 1.0), (small, c))
    ]
    torch.testing.assert_close(loss[0] / loss[1], torch.tensor(c * c).double())


def test_without_noise_and_nonlinearity_it_finds_the_principal_subspace():
    rng = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.05, 0.03]).double()
    mixing, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng).double())
    data = torch.randn(400, 6, generator=rng).double() * scales @ mixing
    data = data - data.mean(dim=0)
    torch.manual_seed(0)
    model = TiedAutoencoder(6, [2]).double()
    layer = model.layers[0]
    with torch.no_grad():  # every unit active for every sample: the ReLU is the identity
        layer.encoder_bias.fill_(3.0)
        layer.decoder_bias.copy_(-layer.weight.t() @ layer.encoder_bias)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, history_size=40, tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(data, 0.0, 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert bool((layer.encode(data) > 0).all())
    learnt, _ = torch.linalg.qr(layer.weight.detach().t())
    principal = torch.linalg.svd(data, full_matrices=False).Vh[:2].t()
    cosines = torch.linalg.svdvals(learnt.t() @ principal)
    assert torch.rad2deg(torch.acos(cosines.clamp(max=1))).max() < 1


@pytest.mark.slow
def test_it_denoises_poses():
    """Noise of 40 mm a coordinate moves a joint by 64 mm; held-out poses, AE[2000]."""
    from datamodules.synthetic import SyntheticDataModule

    data = SyntheticDataModule(train_samples=20_000)
    poses = data.training_poses(20_000)["joints_3d"].reshape(-1, 51)
    train, held = poses[:18_000], poses[18_000:]
    torch.manual_seed(0)
    model = TiedAutoencoder(51, [2000])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(15):
        for rows in torch.randperm(len(train)).split(128):
            optimizer.zero_grad()
            model.loss(train[rows], 40.0, 0.1).backward()
            optimizer.step()

    def joint_error(x: Tensor) -> float:
        return float((x - held).reshape(-1, 17, 3).norm(dim=-1).mean())

    with torch.no_grad():
        noisy = corrupted(held, 40.0, None)
        assert 60 < joint_error(noisy) < 68
        assert joint_error(model(noisy)) < 50
        assert joint_error(model(held)) < 30


# ---- the decoder --------------------------------------------------------------------------------


def test_a_linear_decoder_is_one_affine_map():
    model = autoencoder(9, 5).double()
    first, second = model.layers
    matrix = first.weight.t() @ second.weight.t()
    offset = first.weight.t() @ second.decoder_bias + first.decoder_bias
    h = torch.randn(10, 5, dtype=torch.float64)
    torch.testing.assert_close(model.decode(h), h @ matrix.t() + offset)
    with_relu = autoencoder(9, 5, relu=True).double()
    assert not torch.allclose(with_relu.decode(h), model.decode(h))


@pytest.mark.parametrize("relu", [False, True])
def test_the_untied_copy_decodes_alike_and_then_goes_its_own_way(relu: bool):
    model = autoencoder(9, 5, relu=relu)
    copy = LinearDecoder.of(model)
    h = torch.randn(10, 5)
    torch.testing.assert_close(copy(h), model.decode(h))
    before = model.decode(h)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.1)
    assert torch.equal(model.decode(h), before)
    assert not torch.allclose(copy(h), before)


@pytest.mark.parametrize("hidden", [[], [0], [5, -1]])
def test_layers_that_make_no_sense_are_named(hidden: list[int]):
    with pytest.raises(UsageError, match="autoencoder layers"):
        TiedAutoencoder(7, hidden)

"""Linear layers by oneDNN: the same values, gradients and counts as PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lib import products

quick = pytest.mark.skipif(not products.AVAILABLE, reason="this build of PyTorch has no oneDNN linear layer")


def layers(inside: int, outside: int, bias: bool = True) -> tuple[products.Linear, nn.Linear]:
    """A layer of ours and one of torch's with the same weights."""
    torch.manual_seed(0)
    ours, theirs = products.Linear(inside, outside, bias), nn.Linear(inside, outside, bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@quick
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 300, 96), (1100, 96), (2, 3, 200, 96)])
def test_values_and_gradients_are_those_of_torch(shape, bias):
    ours, theirs = layers(96, 80, bias)
    y, slope = torch.randn(shape), torch.randn(*shape[:-1], 80)
    assert products.quicker(y, ours.weight)
    found = []
    for layer in (ours, theirs):
        given = y.clone().requires_grad_()
        answer = layer(given)
        answer.backward(slope)
        found.append((answer.detach(), given.grad, layer.weight.grad, *([layer.bias.grad] if bias else [])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@quick
def test_strided_inputs_and_inputs_without_gradient():
    """Views that are not contiguous, as attention makes them; a first layer, whose input wants no gradient."""
    ours, theirs = layers(64, 128)
    y = torch.randn(8, 64, 512).mT
    for layer in (ours, theirs):
        layer(y).square().sum().backward()
    torch.testing.assert_close(ours(y), theirs(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-2)


@quick
@pytest.mark.parametrize("learns", [True, False])
def test_the_gelu_after_it_is_the_one_by_the_error_function(learns):
    ours, theirs = layers(96, 512)
    y = 3 * torch.randn(500, 96)
    with torch.set_grad_enabled(learns):
        torch.testing.assert_close(ours.with_gelu(y), functional.gelu(theirs(y)), rtol=1e-5, atol=1e-5)
    assert ours.with_gelu(y[:2]).equal(functional.gelu(theirs(y[:2])))  # too small for oneDNN: torch's own


@quick
def test_what_oneDNN_does_not_take_is_torchs_own():
    ours, _ = layers(96, 512)
    y = torch.randn(500, 96)
    assert products.quicker(y, ours.weight)
    assert not products.quicker(y[:50], ours.weight) and not products.quicker(y.double(), ours.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(y).dtype == torch.bfloat16
    per_field = torch.func.vmap(torch.func.grad(lambda w, x: functional.gelu(products.linear(x, w)).sum()), (None, 0))
    assert per_field(ours.weight, torch.randn(3, 500, 96)).shape == (3, 512, 96)


@quick
def test_derivatives_in_forward_mode_are_torchs_own():
    ours, theirs = layers(96, 512)
    y = torch.randn(500, 96)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(y, torch.ones_like(y))
        tangents = [forward_ad.unpack_dual(layer(dual)).tangent for layer in (ours, theirs)]
    torch.testing.assert_close(*tangents)


@quick
def test_products_are_counted():
    ours, theirs = layers(96, 512)
    counts = []
    for layer in (ours, theirs):
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(500, 96, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 500 * 96 * 512

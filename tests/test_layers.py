"""Dropout: how often, at what scale, which neighbours, what its gradient is, when it does nothing."""

import pytest
import torch
from torch.testing import assert_close

from lib import data, layers, model
from lib.layers import Dropout

COUNT = 2**20


def dropped(p, shape=(COUNT,), seed=0):
    torch.manual_seed(seed)
    return Dropout(p).double()(torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_and_the_rest_makes_up_for_them(p):
    y = dropped(p)
    q = round(p * 65536) / 65536
    assert float((y == 0).double().mean()) == pytest.approx(q, abs=4 * (q * (1 - q) / COUNT) ** 0.5)
    assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - q)), rtol=1e-15, atol=0)


def test_what_is_dropped_tells_nothing_of_its_neighbours():
    y = dropped(0.3) == 0
    gone = y.double() - y.double().mean()
    for apart in (1, 2, 3, 4, 5, 8, 16):
        correlation = (gone[apart:] * gone[:-apart]).mean() / gone.square().mean()
        assert abs(float(correlation)) < 4 / COUNT**0.5


def test_the_smallest_and_the_largest_step_of_the_probability_are_kept():
    assert 4 < int((dropped(1 / 65536) == 0).sum()) < 36  # 16 are expected
    assert 4 < int((dropped(1 - 1 / 65536) != 0).sum()) < 36


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 3), (0, 4)])
def test_any_shape_is_dropped_and_the_gradient_is_the_mask(shape):
    torch.manual_seed(0)
    y = torch.randn(*shape[::-1], dtype=torch.float64).permute(*range(len(shape))[::-1]).requires_grad_()
    out = Dropout(0.25).double()(y)
    (gradient,) = torch.autograd.grad(out.sum(), y)
    assert out.shape == y.shape and set(gradient.unique().tolist()) <= {0.0, 4 / 3}
    assert_close(out, y * gradient, rtol=1e-15, atol=0)


def test_the_global_generator_decides_and_every_call_draws_anew():
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first, second = layer(torch.ones(100)), layer(torch.ones(100))
    torch.manual_seed(3)
    assert torch.equal(layer(torch.ones(100)), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("p", "training"), [(0.5, True), (0.5, False), (0.0, True)])
def test_what_is_dropped_onto_tokens_is_their_sum_with_its_gradients(p, training, dtype):
    """In one pass where both have a precision, else in two."""
    layer, g = Dropout(p).train(training), data.generator(0, "test of layers")
    tokens, y = (torch.randn(3, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = []
    for add in (layer.onto, lambda tokens, y: tokens + layer(y)):
        torch.manual_seed(1)
        total = add(tokens, y.to(dtype))
        found.append((total, *torch.autograd.grad(total.square().sum(), (tokens, y))))
    for one, two in zip(*found, strict=True):
        assert one.dtype == two.dtype
        assert_close(one, two, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_without_probability_and_in_evaluation_nothing_is_drawn_or_changed(p, training):
    y, before = torch.ones(5), torch.get_rng_state()
    assert Dropout(p).train(training)(y) is y
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_has_the_precision_of_its_input(dtype):
    assert Dropout(0.1)(torch.ones(10, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_an_impossible_probability_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout is {p}; give a probability from 0 to less than 1"):
        model.build("v2-transformer", dropout=p)


def test_elsewhere_than_on_a_cpu_it_is_that_of_torch(monkeypatch):
    asked = []
    monkeypatch.setattr(layers, "dropout", lambda y, p: asked.append(p) or y)
    y = torch.ones(3, device="meta")
    assert Dropout(0.25)(y) is y and asked == [0.25]
    assert Dropout(0.25).eval()(y) is y and asked == [0.25]


@pytest.mark.parametrize("version", ["v1-mamba", "v2-transformer", "v2-bimamba"])
def test_every_encoder_drops_in_training_only(version):
    network = model.build(version, width=16, inner=16, ffn=16, heads=2, layers=2, frequencies=4, head_width=0, dropout=0.5)
    batch, values = data.observe(torch.zeros(1, 1, 4, 4), 5), torch.zeros(1, 16, 1)

    def answer():
        return network.velocity(values, torch.zeros(1), batch.s_qry, network.encode(batch))

    torch.manual_seed(0)
    assert not torch.equal(answer(), answer())
    network.eval()
    assert torch.equal(answer(), answer())
    assert not any(isinstance(part, torch.nn.Dropout) for part in network.modules())

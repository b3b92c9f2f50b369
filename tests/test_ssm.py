"""Scans: the fast form equals the loop in values and in all gradients; what dt does to the state."""

import pytest
import torch
from torch.testing import assert_close

from lib import ssm

LENGTHS = (1, 2, 3, 7, 33, 102, 1075)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def lti_inputs(length, batch=2, width=3, state=4):
    u, A = random(batch, length, width), -torch.exp(-1 + 0.3 * random(width, state))
    return u, A, random(width, state, seed=1), random(width, state, seed=2), random(width, seed=3)


def value_and_gradients(f, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = f(*inputs)
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("hold", [False, True])
def test_lti_fft_equals_the_loop(length, hold):
    u, A, B, C, D = lti_inputs(length)
    for dt in (torch.tensor(1 / length, dtype=torch.float64), torch.tensor([1 / length, 0.01], dtype=torch.float64)):
        run = lambda method: value_and_gradients(lambda u, A, B, C, D, dt: ssm.lti_scan(u, dt, A, B, C, D, hold, method), u, A, B, C, D, dt)  # noqa: E731, B023
        for fast, slow in zip(run("fft"), run("loop"), strict=True):
            assert_close(fast, slow, rtol=1e-9, atol=1e-9 * float(slow.abs().max()))  # FFT rounding, relative to the largest value


@pytest.mark.parametrize("length", LENGTHS)
def test_selective_blocks_equal_the_loop(length):
    u, A, _, _, D = lti_inputs(length)
    delta = torch.nn.functional.softplus(random(*u.shape, seed=5) - 2)
    B, C = random(2, length, 4, seed=6), random(2, length, 4, seed=7)
    run = lambda method: value_and_gradients(lambda *x: ssm.selective_scan(*x, method=method), u, delta, A, B, C, D)  # noqa: E731
    for fast, slow in zip(run("blocked"), run("loop"), strict=True):
        assert_close(fast, slow, rtol=1e-10, atol=1e-10)


def test_a_selective_scan_with_constant_inputs_is_the_lti_scan():
    u, A, B, C, D = lti_inputs(33)
    delta = torch.full_like(u, 0.05)
    shared_B, shared_C = B[:1].expand(3, -1), C[:1].expand(3, -1)
    fixed = ssm.lti_scan(u, torch.tensor(0.05, dtype=torch.float64), A, 0.05 * shared_B, shared_C, D)
    selective = ssm.selective_scan(u, delta, A, B[:1].expand(2, 33, 4), C[:1].expand(2, 33, 4), D)
    assert_close(selective, fixed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scan", ["fft", "blocked"])
def test_scans_are_causal(scan):
    u, A, B, C, _ = lti_inputs(40)
    if scan == "fft":
        run = lambda u: ssm.lti_scan(u, torch.tensor(0.02, dtype=torch.float64), A, B, C)  # noqa: E731
    else:
        run = lambda u: ssm.selective_scan(u, torch.full_like(u, 0.02), A, B[:1].expand(2, 40, 4), C[:1].expand(2, 40, 4))  # noqa: E731
    later = u.clone()
    later[:, 20:] += 1
    assert_close(run(u)[:, :20], run(later)[:, :20], rtol=0, atol=1e-12)
    assert not torch.allclose(run(u)[:, 20:], run(later)[:, 20:])


def test_undiscretised_input_makes_the_state_grow_with_length_whatever_dt_is():
    """A constant input of 1 through Bbar = B sums to about L tokens; through the zero-order hold it stays below 1/|A|."""
    A, one = torch.tensor([[-0.37]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def last(length, hold):
        u = torch.ones(1, length, 1, dtype=torch.float64)
        return float(ssm.lti_scan(u, torch.tensor(1 / length, dtype=torch.float64), A, one, one, None, hold)[0, -1, 0])

    assert last(1000, False) / last(100, False) == pytest.approx(10, rel=0.02)
    assert last(1000, True) / last(100, True) == pytest.approx(1, rel=0.01)


def test_large_steps_stay_finite():
    u, A, _, _, D = (x.float() for x in lti_inputs(300))
    delta = torch.full_like(u, 50.0)
    out = ssm.selective_scan(u, delta, A, random(2, 300, 4).float(), random(2, 300, 4).float(), D)
    assert torch.isfinite(out).all()

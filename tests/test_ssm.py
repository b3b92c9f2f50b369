"""Scans: every fast form equals the loop in values and in all gradients; clamps, directions, causality; what dt does to the state."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus
from torch.testing import assert_close

from lib import scans, ssm

LENGTHS = (1, 2, 3, 7, 33, 102, 1075)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def lti_inputs(length, batch=2, width=3, state=4):
    """u, A, B, C, D of a bank whose states remember a good part of the sequence."""
    u, A = random(batch, length, width), -torch.exp(-1 + 0.3 * random(width, state))
    return u, A, random(width, state, seed=1), random(width, state, seed=2), random(width, seed=3)


def selective_inputs(length, state=4, scale=1.0):
    u, A, _, _, D = lti_inputs(length, state=state)
    delta = scale * softplus(random(*u.shape, seed=5) - 2)
    return u, delta, A, random(2, length, state, seed=6), random(2, length, state, seed=7), D


def ssd_inputs(length, scale=1.0):
    u, A = random(2, length, 2, 3), -torch.exp(random(2))
    delta = scale * softplus(random(2, length, 2) - 2)
    return u, delta, A, random(2, length, 4, seed=6), random(2, length, 4, seed=7), random(2, seed=8)


def steps(length):
    """One step for all fields, and one per field."""
    return torch.tensor(1 / length, dtype=torch.float64), torch.tensor([1 / length, 0.01], dtype=torch.float64)


def value_and_gradients(f, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = f(*inputs)
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)


def assert_same(fast, slow, tolerance=1e-10):
    """Rounding of sums in another order, relative to the largest entry."""
    for one, other in zip(fast, slow, strict=True):
        assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def lti(method, hold=False, clamp="none", limit=10.0, reverse=False):
    return lambda u, A, B, C, D, dt: ssm.lti_scan(u, dt, A, B, C, D, hold, clamp, limit, reverse, method)


@pytest.fixture(params=[None, 60])
def blocks(request, monkeypatch):
    """As the machine would have them, and so small that the sequence is cut into several."""
    if request.param:
        monkeypatch.setattr(scans, "CACHE", request.param)
        monkeypatch.setattr(scans, "TREE", request.param)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("method", ["fused", "fft", "chunked"])
def test_fixed_bank_equals_the_loop(length, hold, method):
    inputs = lti_inputs(length)
    for dt in steps(length):
        run = lambda m: value_and_gradients(lti(m, hold), *inputs, dt)  # noqa: E731, B023
        assert_same(run(method), run("loop"), 1e-9)


@pytest.mark.parametrize("length", (1, 2, 3, 7, 33, 102))
@pytest.mark.parametrize("clamp, method", [("hard", "fused"), ("hard", "blocked"), ("hard", "tree"), ("soft", "blocked"), ("soft", "tree")])
@pytest.mark.parametrize("hold", [False, True])
def test_clamped_bank_equals_the_loop(length, clamp, hold, method, blocks):
    inputs = lti_inputs(length)
    dt = steps(length)[length % 2]
    for limit in (0.5, 100.0):  # reached, and not
        run = lambda m: value_and_gradients(lti(m, hold, clamp, limit), *inputs, dt)  # noqa: E731, B023
        assert_same(run(method), run("loop"))


@pytest.mark.parametrize("clamp", ["hard", "soft"])
def test_clamped_bank_equals_the_loop_at_full_length(clamp):
    inputs, dt = lti_inputs(1075), steps(1075)[0]
    run = lambda m: value_and_gradients(lti(m, False, clamp, 2.0), *inputs, dt)  # noqa: E731
    slow = run("loop")
    for method in ("blocked", "tree", *(("fused",) if clamp == "hard" else ())):
        assert_same(run(method), slow)


def test_a_hard_clamp_bounds_what_the_free_state_exceeds():
    u, A, B, _, _ = lti_inputs(102, width=2, state=1)
    one, dt = torch.ones(2, 1, dtype=torch.float64), steps(102)[0]
    free, held = (ssm.lti_scan(u, dt, A, B, one, clamp=clamp, limit=1.0) for clamp in ("none", "hard"))
    assert free.abs().max() > 2
    assert held.abs().max() == 1


def test_a_clamp_out_of_reach_changes_nothing():
    u, A, B, C, D = lti_inputs(102)
    dt = steps(102)[0]
    assert torch.equal(ssm.lti_scan(u, dt, A, B, C, D, True, "hard", 1e3), ssm.lti_scan(u, dt, A, B, C, D, True))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("method", ["fused", "blocked", "tree"])
def test_selective_scan_equals_the_loop(length, method, blocks):
    inputs = selective_inputs(length)
    run = lambda m: value_and_gradients(lambda *x: ssm.selective_scan(*x, method=m), *inputs)  # noqa: E731
    assert_same(run(method), run("loop"))


@pytest.mark.parametrize("length", LENGTHS)
def test_ssd_chunks_equal_the_loop(length):
    inputs = ssd_inputs(length)
    run = lambda m: value_and_gradients(lambda *x: ssm.ssd_scan(*x, method=m), *inputs)  # noqa: E731
    assert_same(run("chunked"), run("loop"))


def test_ssd_is_the_selective_scan_with_one_decay_per_head():
    u, delta, A, B, C, D = ssd_inputs(40)
    wide = [u.flatten(2), delta.repeat_interleave(3, 2), A.repeat_interleave(3)[:, None].expand(6, 4), B, C, D.repeat_interleave(3)]
    assert_same([ssm.ssd_scan(u, delta, A, B, C, D).flatten(2)], [ssm.selective_scan(*wide, method="loop")])


def test_a_selective_scan_with_constant_inputs_is_the_lti_scan():
    u, A, B, C, D = lti_inputs(33)
    delta = torch.full_like(u, 0.05)
    shared_B, shared_C = B[:1].expand(3, -1), C[:1].expand(3, -1)
    fixed = ssm.lti_scan(u, torch.tensor(0.05, dtype=torch.float64), A, 0.05 * shared_B, shared_C, D)
    selective = ssm.selective_scan(u, delta, A, B[:1].expand(2, 33, 4), C[:1].expand(2, 33, 4), D)
    assert_close(selective, fixed, rtol=1e-10, atol=1e-10)


def fixed_form(method, clamp="none"):
    return lambda u, **how: ssm.lti_scan(u, steps(9)[1], *lti_inputs(1)[1:], clamp=clamp, limit=0.5, method=method, **how)


def selective_form(method):
    return lambda u, **how: ssm.selective_scan(u, *fixed_inputs(u), method=method, **how)


def ssd_form(method):
    """Every channel a head of its own."""

    def run(u, **how):
        delta, A, B, C, D = fixed_inputs(u)
        return ssm.ssd_scan(u[..., None], delta, A[:, 0], B, C, D, method=method, **how)

    return run


FORMS = {
    **{f"lti-{m}": fixed_form(m) for m in ("loop", "fused", "fft", "chunked")},
    **{f"clamp-{m}": fixed_form(m, "hard") for m in ("loop", "fused", "blocked", "tree")},
    **{f"selective-{m}": selective_form(m) for m in ("loop", "fused", "blocked", "tree")},
    **{f"ssd-{m}": ssd_form(m) for m in ("loop", "chunked")},
}


def fixed_inputs(u):
    """delta, A, B, C, D that do not depend on the length, so that only u and the direction matter."""
    one = torch.ones(*u.shape[:2], 4, dtype=u.dtype)
    return torch.full_like(u, 0.1), *lti_inputs(1)[1:2], one * random(4), one * random(4, seed=1), random(3)


@pytest.mark.parametrize("form", FORMS)
def test_reverse_is_the_flipped_scan_of_the_flipped_tokens(form):
    u = random(2, 70, 3)
    assert_close(FORMS[form](u, reverse=True), FORMS[form](u.flip(1)).flip(1), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(FORMS[form](u, reverse=True), FORMS[form](u))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True])
def test_scans_are_causal(form, reverse):
    u, changed = random(2, 70, 3), random(2, 70, 3)
    past, future = (slice(33, 70), slice(0, 33)) if reverse else (slice(0, 33), slice(33, 70))
    changed[:, future] += 1
    before, after = (FORMS[form](x, reverse=reverse) for x in (u, changed))
    assert_close(before[:, past], after[:, past], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, future], after[:, future])


@pytest.mark.parametrize("reverse", [False, True])
def test_input_dependent_parameters_are_reversed_with_the_tokens(reverse):
    for scan, inputs in ((ssm.selective_scan, selective_inputs(33)), (ssm.ssd_scan, ssd_inputs(33))):
        run = lambda m: value_and_gradients(lambda *x: scan(*x, reverse, m), *inputs)  # noqa: E731, B023
        assert_same(run("auto"), run("loop"))
        given = [x.flip(1) if x.dim() > 2 and x.shape[1] == 33 else x for x in inputs]
        assert_same([scan(*inputs, reverse)], [scan(*given, not reverse).flip(1)])


@pytest.mark.parametrize("length", [4])
def test_gradients_agree_with_finite_differences(length):
    grad = lambda f, *x: torch.autograd.gradcheck(f, [y.detach().clone().requires_grad_() for y in x])  # noqa: E731
    bank = (*lti_inputs(length, width=2, state=2), steps(length)[1])
    for hold in (False, True):
        assert grad(lti("chunked", hold), *bank) and grad(lti("fused", hold), *bank)
    for clamp, method in (("hard", "blocked"), ("soft", "blocked"), ("hard", "tree"), ("soft", "tree"), ("hard", "fused")):
        assert grad(lti(method, True, clamp, 0.02), *bank)
    for method in ("fused", "blocked"):
        assert grad(lambda *x: ssm.selective_scan(*x, method=method), *selective_inputs(length, 2))  # noqa: B023
    assert grad(lambda *x: ssm.ssd_scan(*x, method="chunked"), *ssd_inputs(length))


def relative(fast, slow):
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("scan", ["selective", "selective blocked", "ssd", "lti", "lti chunked"])
def test_single_precision_stays_close_to_a_double_precision_loop_at_any_step(scan, scale):
    """Values to 1e-6 (SSD 5e-6) of the largest; gradients, which sum over all tokens, to 3e-5 (the loop's are 9e-6 off); all finite."""
    scan, _, method = scan.partition(" ")
    if scan == "lti":
        f, g = (lambda u, A, B, C, D, dt, m=m: ssm.lti_scan(u, dt, A, B, C, D, True, method=m) for m in (method or "auto", "loop"))
        inputs = (*lti_inputs(1075), scale * steps(1075)[0])
    else:
        one, inputs = (
            (ssm.selective_scan, selective_inputs(1075, scale=scale)) if scan == "selective" else (ssm.ssd_scan, ssd_inputs(1075, scale))
        )
        f, g = (lambda *x, m=m: one(*x, method=m) for m in (method or "auto", "loop"))
    fast = value_and_gradients(f, *(x.float() for x in inputs))
    slow = value_and_gradients(g, *(x.float().double() for x in inputs))
    assert all(torch.isfinite(x).all() for x in fast)
    assert relative(fast[:1], slow[:1]) < (5e-6 if scan == "ssd" else 1e-6)
    assert relative(fast[1:], slow[1:]) < 3e-5


def test_auto_picks_by_device_and_size_and_never_the_loop():
    """One pass where the numbers lie in this machine's memory; elsewhere (meta stands for a GPU) transforms, products, blocks."""
    short, long = torch.zeros(1, ssm.FFT_BELOW - 1, 1), torch.zeros(1, ssm.FFT_BELOW, 1)
    for u in (short, long, short.double()):
        assert [ssm._lti_method(u, clamp, "auto") for clamp in ("none", "hard", "soft")] == ["fused", "fused", "blocked"]
    assert [ssm._lti_method(u.to("meta"), "none", "auto") for u in (short, long)] == ["fft", "chunked"]
    assert ssm._lti_method(long.to("meta"), "hard", "auto") == ssm._lti_method(long.bfloat16(), "hard", "auto") == "blocked"


def test_under_compilers_and_transforms_a_scan_is_made_of_torchs_operations():
    u, delta, A, B, C, _ = selective_inputs(9)
    per_field = torch.func.vmap(lambda u, delta, B, C: ssm.selective_scan(u[None], delta[None], A, B[None], C[None], method="loop")[0])
    assert_same([per_field(u, delta, B, C)], [ssm.selective_scan(u, delta, A, B, C)])
    picked = []
    torch.func.vmap(lambda u: picked.append(ssm._lti_method(u, "none", "auto")) or u)(u)
    assert picked == ["fft"]


def test_a_step_per_field_needs_as_many_as_fields():
    u, A, B, C, D = lti_inputs(40)
    with pytest.raises(ValueError, match="3 steps for 2 fields"):
        ssm.lti_scan(u, steps(40)[0].expand(3), A, B, C, D)


def test_shapes_that_the_signatures_do_not_name_are_expanded_or_refused():
    """The compiled loops look at no bounds, so nothing else may reach them; tried where annotations are not checked."""
    words = """
import sys; sys.path.insert(0, "tests")
import torch
from lib import ssm
from test_ssm import lti_inputs, selective_inputs, steps
u, delta, A, B, C, D = selective_inputs(40)
given = u, delta[..., :1], A, B[:1], C[:1], D
print(float((ssm.selective_scan(*given) - ssm.selective_scan(*given, method="loop")).abs().max()) < 1e-12)
u, A, B, C, D = lti_inputs(40)
given = u, steps(40)[0], A, B, C[:1], D
print(float((ssm.lti_scan(*given) - ssm.lti_scan(*given, method="loop")).abs().max()) < 1e-12)
for bad in (lambda: ssm.selective_scan(*selective_inputs(40)[:3], *selective_inputs(30)[3:]), lambda: ssm.lti_scan(u[..., :2], *given[1:])):
    try:
        print(bad().shape)
    except RuntimeError:
        print(True)
"""
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert told.stdout.split() == ["True"] * 4


def test_what_is_not_finite_is_not_hidden():
    """A training that diverges must be seen to: by every scan, whatever its clamps do."""
    for method in ("fused", "blocked"):
        for place in (0, 1):
            inputs = selective_inputs(40)
            inputs[place][0, 5, 1] = float("nan")
            assert torch.isnan(ssm.selective_scan(*inputs, method=method)[0, 5:, 1]).all()
    u, A, B, C, D = lti_inputs(40)
    u[0, 5, 1] = float("nan")
    for clamp in ("none", "hard"):
        assert torch.isnan(ssm.lti_scan(u, steps(40)[0], A, B, C, D, clamp=clamp)[0, 5, 1])


@pytest.mark.parametrize(
    "clamp, method, words",
    [("tight", "auto", "none, hard, soft"), ("hard", "fft", "blocked"), ("none", "tree", "chunked"), ("soft", "fused", "blocked")],
)
def test_an_unknown_clamp_or_method_is_named_with_what_is_allowed(clamp, method, words):
    with pytest.raises(ValueError, match=words):
        lti(method, clamp=clamp)(*lti_inputs(3), steps(3)[0])
    with pytest.raises(ValueError, match="blocked"):
        ssm.selective_scan(*selective_inputs(3), method="fft")


def test_undiscretised_input_makes_the_state_grow_with_length_whatever_dt_is():
    """A constant input of 1 through Bbar = B sums to about L tokens; through the zero-order hold it stays below 1/|A|."""
    A, one = torch.tensor([[-0.37]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def last(length, hold):
        u = torch.ones(1, length, 1, dtype=torch.float64)
        return float(ssm.lti_scan(u, torch.tensor(1 / length, dtype=torch.float64), A, one, one, None, hold)[0, -1, 0])

    assert last(1000, False) / last(100, False) == pytest.approx(10, rel=0.02)
    assert last(1000, True) / last(100, True) == pytest.approx(1, rel=0.01)

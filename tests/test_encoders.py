"""Blocks of the encoders: which way they look, padding, the clamp, the gate, symmetry of both directions, norms."""

import pytest
import torch
from torch.testing import assert_close

from lib import data, encoders
from lib.encoders import BothWays, FeedForward, PerceiverLayer, SSMBlock

WIDTH, INNER, STATE, HEADS = 6, 8, 3, 2


def scan_block(step="length", reverse=False, seed=0, **switches):
    torch.manual_seed(seed)
    return SSMBlock(WIDTH, INNER, STATE, step, HEADS, reverse=reverse, **switches).double()


def pair(step="length", norm="pre", mlp=0, seed=0):
    ahead, back = (scan_block(step, reverse, seed + reverse, norm="none") for reverse in (False, True))
    return BothWays(WIDTH, ahead, back, norm, mlp, 0.0).double()


def tokens(length=7, seed=0, fields=2):
    return torch.randn(fields, length, WIDTH, generator=data.generator(seed, "noise"), dtype=torch.float64)


def moved(block, at, length=7):
    """Which tokens of the answer change when token `at` does."""
    one = tokens(length)
    two = one.clone()
    two[:, at, 0] += 1  # not the same for all D, which a norm would not notice
    return (block(two) - block(one)).abs().amax((0, 2)) > 1e-9


@pytest.mark.parametrize("step", encoders.STEPS)
def test_forward_sees_what_stands_before_and_backward_what_stands_behind(step):
    assert moved(scan_block(step), 3).tolist() == [False] * 3 + [True] * 4
    assert moved(scan_block(step, reverse=True), 3).tolist() == [True] * 4 + [False] * 3
    assert moved(pair(step), 3).all()


@pytest.mark.parametrize("step", encoders.STEPS)
def test_backward_is_forward_on_the_turned_sequence(step):
    ahead, back = scan_block(step), scan_block(step, reverse=True)
    assert_close(back(tokens()), ahead(tokens().flip(1)).flip(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("step", encoders.STEPS)
def test_turning_the_sequence_and_swapping_the_directions_turns_the_answer(step, norm):
    block, twin = pair(step, norm, mlp=2), pair(step, norm, mlp=2)
    twin.load_state_dict(block.state_dict())
    twin.ahead.load_state_dict(block.back.state_dict())
    twin.back.load_state_dict(block.ahead.state_dict())
    with torch.no_grad():
        twin.join.weight.copy_(block.join.weight.roll(WIDTH, 1))
    assert_close(twin(tokens().flip(1)).flip(1), block(tokens()), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(block(tokens().flip(1)).flip(1), block(tokens()))


@pytest.mark.parametrize("clamp", encoders.CLAMPS)
@pytest.mark.parametrize("step", encoders.STEPS)
@pytest.mark.parametrize("make", ["forward", "backward", "both"])
def test_padding_in_front_changes_nothing(step, make, clamp):
    """Before a forward scan the state is still 0; a backward scan reaches it after the last real token."""
    block = pair(step, mlp=2) if make == "both" else scan_block(step, make == "backward", clamp=clamp)
    padded = torch.cat([torch.full((2, 3, WIDTH), 5.0, dtype=torch.float64), tokens()], 1)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, :3] = False
    assert_close(block(padded, mask)[:, 3:], block(tokens()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_clamp_bounds_the_state_and_leaves_small_ones_alone(reverse):
    """With C = 1 / S, D = 0 and W_out = gate = 1, the answer is the mean of the states: at most 10 of it is left."""

    def states(clamp, size):
        block = scan_block("length", reverse, clamp=clamp)
        with torch.no_grad():
            block.C.fill_(1 / STATE), block.D.fill_(0), block.B.fill_(1)
        u = torch.full((1, 40, INNER), size, dtype=torch.float64)
        return block.scan(u, None).detach()

    assert float(states("none", 1.0).max()) > 20
    assert float(states("hard", 1.0).max()) == pytest.approx(10)
    assert 5 < float(states("soft", 1.0).max()) < 10
    assert_close(states("hard", 0.1), states("none", 0.1), rtol=1e-10, atol=1e-12)
    assert_close(states("soft", 1e-4), states("none", 1e-4), rtol=1e-6, atol=0)


def test_the_gate_is_what_it_is_called():
    """A gate projection of 0 closes silu and leaves sigmoid half open."""
    for gate, factor in {"silu": 0.0, "sigmoid": 0.5}.items():
        block = scan_block(gate=gate)
        with torch.no_grad():
            block.enter.weight[INNER:].zero_(), block.enter.bias[INNER:].zero_(), block.leave.bias.zero_()
        u = block.enter(tokens())[..., :INNER]
        assert_close(block.update(tokens(), None), factor * (block.scan(u, None) @ block.leave.weight.T))


@pytest.mark.parametrize("make", [scan_block, pair, lambda norm, mlp: FeedForward(WIDTH, 4 * WIDTH, norm, 0.0).double()])
def test_post_norm_norms_what_leaves_the_block(make):
    """After a fresh LayerNorm every token has mean 0 and variance 1; a pre-norm block keeps the tokens' own scale."""
    large = 100 * tokens()
    after = make(norm="post", mlp=2)(large)
    assert_close(after.mean(-1), torch.zeros(2, 7, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(after.var(-1, unbiased=False), torch.ones(2, 7, dtype=torch.float64), rtol=1e-3, atol=0)
    assert float(make(norm="pre", mlp=2)(large).detach().var()) > 1000


def test_the_mlp_works_on_each_token_alone():
    """Without the scan (W_out = 0) only the MLP is left: it changes every token, and none hears of another."""
    block = scan_block(mlp=4)
    with torch.no_grad():
        block.leave.weight.zero_(), block.leave.bias.zero_()
    assert block.feed.layers[0].weight.shape == (4 * WIDTH, WIDTH)
    assert not torch.allclose(block(tokens()), tokens())
    assert moved(block, 3).tolist() == [i == 3 for i in range(7)]


def test_ssd_and_selective_steps_start_near_a_hundredth():
    for step in ("selective", "ssd"):
        delta = torch.nn.functional.softplus(scan_block(step).delta.bias)
        assert_close(delta, torch.full_like(delta, 0.01), rtol=1e-5, atol=0)


def test_ssd_heads_must_divide_the_width_of_the_scan():
    with pytest.raises(ValueError, match="scan width 8 is not a multiple of 3 heads"):
        SSMBlock(WIDTH, INNER, STATE, "ssd", 3)


def test_perceiver_queries_see_readings_and_each_other_but_no_padding():
    torch.manual_seed(0)
    layer = PerceiverLayer(WIDTH, HEADS, 12, "pre", 0.0).double()
    queries, readings = tokens(5, 1), tokens(4, 2)
    mask = torch.tensor([[False, True, True, True]] * 2)
    here = layer(queries, readings, mask)
    hidden, seen, other = readings.clone(), readings.clone(), queries.clone()
    hidden[:, 0], seen[:, 1], other[:, 4] = 9.0, 9.0, 9.0
    assert_close(layer(queries, hidden, mask), here)
    assert not torch.allclose(layer(queries, seen, mask), here)
    assert not torch.allclose(layer(other, readings, mask)[:, :4], here[:, :4])
    swap = [1, 0, 2, 4, 3]
    assert_close(layer(queries[:, swap], readings, mask), here[:, swap])

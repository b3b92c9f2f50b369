"""Costs: arithmetic against closed forms, growth with length, finer grids with the exact truth."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from lib import bench, cost, data, model, ssm, study, worlds


def test_arithmetic_of_a_product_and_of_a_transform():
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    assert cost.flops(lambda: a @ b) == 2 * 3 * 4 * 5
    n, copies = 64, 7
    signal = torch.zeros(copies, n)
    one = int(2.5 * n * math.log2(n)) * copies
    assert cost.flops(lambda: torch.fft.rfft(signal)) == one
    assert cost.flops(lambda: torch.fft.irfft(torch.fft.rfft(signal), n)) == 2 * one


def test_pointwise_arithmetic_counts_once_per_element_and_a_sum_per_element_read():
    a, b = torch.ones(6, 5), torch.ones(6, 5)
    assert cost.flops(lambda: a + b) == cost.flops(lambda: a.exp()) == cost.flops(lambda: a.sum()) == 30
    assert cost.flops(lambda: torch.addcmul(a, a, b)) == cost.flops(lambda: a.addcmul_(a, b)) == 60
    z = torch.ones(4, dtype=torch.complex64)
    assert cost.flops(lambda: z * z) == 6 * 4
    assert cost.flops(lambda: a.clone().transpose(0, 1).contiguous()) == 0  # moving numbers is not arithmetic


@pytest.mark.parametrize("method", ["loop", "auto"])
def test_a_selective_scan_is_counted_whichever_way_it_runs(method):
    def count(length):
        u, delta = torch.ones(2, length, 8), torch.ones(2, length, 8)
        A, B = -torch.ones(8, 4), torch.ones(2, length, 4)
        return cost.flops(lambda: ssm.selective_scan(u, delta, A, B, B, method=method))

    states = 2 * 64 * 8 * 4  # per state and token: two to make the decay, two or three to step, two to read
    assert 6 * states <= count(64) <= 9 * states
    assert count(128) == pytest.approx(2 * count(64), rel=0.05)


def test_the_backward_pass_of_a_scan_is_counted():
    u = torch.ones(1, 64, 8, requires_grad=True)
    A, B = -torch.ones(8, 4), torch.ones(1, 64, 4)
    forward = cost.flops(lambda: ssm.selective_scan(u, u, A, B, B))
    both = cost.flops(lambda: ssm.selective_scan(u, u, A, B, B).sum().backward())
    assert 1.5 * forward < both - forward < 5 * forward


@pytest.mark.parametrize("version", ["v1-mamba", "v2-transformer"])
def test_arithmetic_from_shapes_is_that_of_the_call(version):
    network = model.build(version)
    batch = data.observe(torch.zeros(1, 1, 16, 16), 51)
    assert cost.velocity_flops(network, 51, 256) == pytest.approx(cost.flops(cost.velocity_call(network, batch)), rel=0.03)


def test_attention_grows_with_the_square_and_the_scan_linearly():
    lengths = (1024, 2048, 4096, 61_440)  # whole chunks of the scan
    layers = {v: [cost.layer_flops(model.build(v), n) for n in lengths] for v in ("v1-mamba", "v4-transformer")}
    scan, attention = ([b - a for a, b in pairwise(found)] for found in layers.values())
    assert scan[1] == 2 * scan[0] and scan[2] == 56 * scan[0]  # a constant and so much for each token
    assert attention[1] > 2.5 * attention[0]
    short_scan, short_attention = (found[2] / found[0] for found in layers.values())
    assert short_scan < 4.6 < short_attention
    long_scan, long_attention = (found[3] / found[2] for found in layers.values())
    assert 14.5 <= long_scan <= 15 < 0.7 * 15**2 < long_attention < 15**2


def test_layers_are_timed_side_by_side():
    rows = cost.per_layer({v: model.build(v) for v in ("v1-mamba", "v2-transformer")}, 100, rounds=1)
    assert [r["version"] for r in rows] == ["v1-mamba", "v2-transformer"]
    assert all(r["ms"] > 0 and r["mflops"] > 0 and r["tokens"] == 100 for r in rows)


def test_an_exponent_is_the_slope_with_the_neighbouring_slopes_as_its_spread():
    tokens = [100, 400, 1600]
    rows = [{"version": "square", "tokens": n, "ms": 3e-4 * n**2} for n in tokens]
    rows += [{"version": "bends", "tokens": n, "ms": y} for n, y in zip(tokens, (1.0, 4.0, 64.0), strict=True)]
    rows += [{"version": "alone", "tokens": 100, "ms": 1.0}, {"version": "alone", "tokens": 400, "ms": math.nan}]
    square, bends, alone = cost.exponents(rows)
    assert square["exponent"] == pytest.approx(2) and square["low"] == pytest.approx(square["high"])
    assert (bends["low"], bends["exponent"], bends["high"]) == pytest.approx((1, 1.5, 2)) and bends["up to"] == 1600
    assert math.isnan(alone["exponent"]) and alone["up to"] == 100


def test_what_fits_the_budget_is_repeated_and_what_does_not_is_measured_once():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert len(cost.in_turns(calls, 3)["a"]) == 3 and order == ["a", "b"] * 4
    assert len(cost.in_turns(calls, 3, budget=0.0)["b"]) == 1


def test_what_would_take_too_long_is_counted_but_not_timed():
    models = {v: model.build(v) for v in ("v1-mamba", "v2-transformer")}
    rows = cost.by_resolution(models, [8, 16], 5, rounds=1, longest=0.0)
    assert [math.isnan(r["ms"]) for r in rows] == [False, False, True, True]
    assert all(r["gflops"] > 0 for r in rows)


def test_training_costs_are_ratios_round_by_round():
    models = {v: model.build(v) for v in ("v1-mamba", "v2-transformer")}
    before = [p.clone() for p in models["v1-mamba"].parameters()]
    first, second = cost.training(models, fields=2, pool=5, rounds=3, base="v1-mamba")
    assert first["ratio"] == (1, 1, 1) != second["ratio"] and second["ratio"][1] <= second["ratio"][0] <= second["ratio"][2]
    assert first["epoch_s"] == pytest.approx(3 * first["step_ms"] / 1e3)  # 5 fields are three batches of two
    moved = [not torch.equal(a, b) for a, b in zip(before, models["v1-mamba"].parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2  # the features' waves are fixed


def test_finer_grids_are_asked_of_the_same_fields_and_drops_pair_with_the_first_grid(tmp_path):
    small = {"width": 32, "inner": 32, "steps": 1, "batch": 2, "fields": 4, "test_fields": 3, "validation_fields": 2}
    plan = study.design("v1-mamba", "plane", [0, 1], {"a": {}, "b": {"head": "residual"}}, positions="step", sensors="step", **small)
    table = cost.finer(plan, [8, 12], tmp_path, fields=2, steps=1)
    assert list(table["resolution"]) == [8, 12] * 4 and all(len(f) == 2 for f in table["psnr_fields"])
    first, second = table[table["resolution"] == 8], table[table["resolution"] == 12]
    assert (first["drop"] == 0).all() and (second["drop"] != 0).any()
    assert list(second["drop"]) == pytest.approx([a - b for a, b in zip(second["psnr"], first["psnr"], strict=True)])
    gained = study.gains(second, "a", value="drop")
    a, b = (second[second["name"] == n]["drop"].mean() for n in "ab")
    assert gained["gain"].item() == pytest.approx(b - a) and gained["seeds"].item() == 2


def test_an_explorers_answer_is_the_same_at_every_call():
    network, batch = model.build("v2-transformer"), data.observe(torch.zeros(1, 1, 8, 8), 5)
    answer = cost.answerer(network, "euler", samples=2)
    first, again = answer(batch, 1, 8), answer(batch, 1, 8)
    assert_close(first.mean, again.mean, rtol=0, atol=0)
    assert first.mean.shape == first.std.shape == (1, 64, 1)


def test_a_finer_grid_asks_the_same_fields():
    world = worlds.get("plane")
    held_out = data.observe(world.fields(5, generator=data.generator(3, "test")), 51)
    finer = cost.at_resolution(held_out, world, 63, 3)  # 63 nodes contain every second one of 32
    assert finer.y_qry.shape == (5, 63 * 63, 1)
    coarse = finer.y_qry.reshape(5, 63, 63)[:, ::2, ::2].reshape(5, -1, 1)
    assert_close(coarse, held_out.y_qry, rtol=0, atol=1e-5)


def test_time_and_arithmetic_are_reported_for_every_model_and_grid():
    models = {v: model.build(v) for v in ("v1-mamba", "v2-transformer")}
    rows = cost.by_resolution(models, [8, 16], 5, rounds=1)
    assert [(r["version"], r["tokens"]) for r in rows] == [(v, 5 + n * n) for n in (8, 16) for v in models]
    assert all(r["ms"] > 0 and r["gflops"] > 0 for r in rows)


def test_contestants_take_turns():
    order = []
    seconds = bench.compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 5
    assert len(seconds["a"]) == len(seconds["b"]) == 3


def test_a_step_is_mostly_layers_and_hardly_data():
    found = bench.training_step(batch=4, rounds=2)
    assert found["batch_share"] < 0.5 and found["step_over_bare"] == pytest.approx(found["step_ms"] / found["bare_ms"], rel=2)

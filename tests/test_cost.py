"""Costs: arithmetic against closed forms, growth with length, finer grids with the exact truth."""

import math

import pytest
import torch
from torch.testing import assert_close

from lib import bench, cost, data, model, worlds


def test_arithmetic_of_a_product_and_of_a_transform():
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    assert cost.flops(lambda: a @ b) == 2 * 3 * 4 * 5
    n, copies = 64, 7
    signal = torch.zeros(copies, n)
    one = int(2.5 * n * math.log2(n)) * copies
    assert cost.flops(lambda: torch.fft.rfft(signal)) == one
    assert cost.flops(lambda: torch.fft.irfft(torch.fft.rfft(signal), n)) == 2 * one


def test_attention_grows_with_the_square_and_the_scan_almost_linearly():
    layers = {v: [cost.per_layer(model.build(v), n, rounds=1)["mflops"] for n in (1000, 4000)] for v in ("v1-mamba", "v4-transformer")}
    scan, attention = (b / a for a, b in layers.values())
    assert 3.9 <= scan < 4.6 < attention


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

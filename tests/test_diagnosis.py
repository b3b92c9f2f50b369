"""Instruments: each measures what it says on models and recurrences whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from test_flow import GaussianModel, a_batch
from torch.testing import assert_close

from lib import data, diagnosis, flow, model, ssm, worlds


@pytest.mark.parametrize("hold", [False, True])
def test_state_weights_are_those_of_the_scan(hold):
    """Feeding a single 1 at token k into the scan leaves weight k in the last state."""
    length, dt, A = 12, 0.07, -0.4
    one, inputs = torch.ones(1, 1, dtype=torch.float64), torch.eye(length, dtype=torch.float64)[..., None]
    y = ssm.lti_scan(inputs, torch.tensor(dt, dtype=torch.float64), A * one, one, one, None, hold, method="loop")
    assert_close(y[:, -1, 0], diagnosis.state_weights(length, dt, A, hold))


def test_dt_of_one_over_length_keeps_the_decay_but_not_the_gain():
    short, long = (diagnosis.state_summary("length", 51, queries, -0.37) for queries in (51, 1024))
    assert short["decay"] == pytest.approx(long["decay"], rel=0.01)
    assert long["gain"] / short["gain"] == pytest.approx(1075 / 102, rel=0.01)
    held_short, held_long = (diagnosis.state_summary("discretised", 51, queries, -0.37) for queries in (51, 1024))
    assert held_long["gain"] == pytest.approx(held_short["gain"], rel=0.01)


def test_readings_lose_their_share_because_queries_are_added_whatever_dt_is():
    for rule in ("length", "fixed", "learned", "discretised"):
        assert diagnosis.state_summary(rule, 51, 1024, -0.37)["share"] < 0.1 < diagnosis.state_summary(rule, 51, 51, -0.37)["share"]


def test_shift_is_zero_where_queries_do_not_see_each_other():
    rows = diagnosis.by_queries(GaussianModel(), a_batch(queries=60), [10, 30, 60], 4, "heun")
    assert [r["queries"] for r in rows] == [10, 30, 60]
    assert all(r["shift"] == 0 for r in rows)
    causal = model.build("v1-mamba", step="fixed").double()
    behind, ahead = (diagnosis.by_queries(causal, a_batch(queries=60), [10, 60], 4, "heun", before=b)[1]["shift"] for b in (False, True))
    assert behind < 1e-9 < 1e-3 < ahead  # rounding of the transform, against the noise of fifty other sites
    together = diagnosis.by_queries(model.build("v2-transformer").double(), a_batch(queries=60), [10, 60], 4, "heun")
    assert together[0]["shift"] == 0 < together[1]["shift"]


def test_the_estimate_from_the_true_state_is_exact_for_a_certain_model():
    batch = a_batch(queries=30)
    same = data.Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, torch.full_like(batch.y_qry, 0.4))
    network = GaussianModel(mean=0.4, width=0.0)
    network.y_mean, network.y_std = torch.zeros(1), torch.ones(1)
    rows = diagnosis.from_true_state(network, same, [0.0, 0.5])
    assert all(row["psnr"] > 200 for row in rows)


def test_blind_estimate_improves_along_the_path_without_any_reading():
    network, batch = GaussianModel(), a_batch()
    network.y_mean, network.y_std = torch.zeros(1), torch.ones(1)
    blind = [row["blind"] for row in diagnosis.from_true_state(network, batch, [0.0, 0.5, 0.9, 0.99])]
    assert blind == sorted(blind)
    spread = batch.y_qry.std().item()
    assert blind[0] == pytest.approx(-20 * torch.log10(torch.tensor(spread)).item(), abs=0.2)  # at t = 0, the mean


def test_path_range_starts_at_noise_and_ends_at_data():
    rows = diagnosis.along_the_path(GaussianModel(), a_batch(), 10, "heun")
    assert rows[0]["std"] == pytest.approx(1, rel=0.05) and rows[-1]["std"] == pytest.approx(0.2, rel=0.1)
    assert rows[0]["low"] < -3 and rows[0]["high"] > 3


def test_one_row_holds_what_the_instruments_say():
    network, batch = GaussianModel(), a_batch(queries=60)
    network.y_mean, network.y_std = torch.zeros(1), torch.ones(1)
    row = diagnosis.examine(network, batch, 4, "heun")
    assert row["shift"] == 0 and row["path"] == diagnosis.along_the_path(network, batch, 4, "heun")
    assert 0.7 < row["largest"] < max(r["high"] for r in row["path"])  # the start, with its widest noise, does not count
    late = diagnosis.from_true_state(network, batch, [0.0, 0.9])
    assert [row["start"], row["late"], row["late_blind"]] == [late[0]["psnr"], late[1]["psnr"], late[1]["blind"]]
    forgetful = flow.sample(network, batch, data.generator(0, "samples"), 4, "heun", feedback=False)[0]
    assert row["forgets"] == diagnosis.psnr(forgetful, batch.y_qry)


def test_gradient_norms_find_a_frozen_part():
    network = model.build("v2-transformer")
    norms = diagnosis.gradient_norms(network, a_batch(queries=10, dtype=torch.float32))
    assert {"enter", "blocks.0", "blocks.3", "cross", "decode"} <= norms.keys()
    assert all(v > 0 for v in norms.values())
    with torch.no_grad():
        network.decode[-1].weight.zero_()  # nothing before the last layer can learn then
    frozen = diagnosis.gradient_norms(network, a_batch(queries=10, dtype=torch.float32))
    assert frozen["blocks.0"] == 0 < frozen["decode"]


def test_linear_dimension_counts_the_directions_of_the_fields():
    g = data.generator(0, "train")
    basis, weights = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((5, 64), (300, 5)))
    fields = (3 + weights @ basis).reshape(300, 1, 8, 8)
    assert diagnosis.linear_dimension(fields) == 5
    fields[:, :, 0, 0] = float("nan")
    assert diagnosis.linear_dimension(fields) == 5


def test_variance_left_falls_from_one_to_nothing():
    g = data.generator(0, "train")
    basis = torch.linalg.qr(torch.randn(64, 3, generator=g, dtype=torch.float64)).Q
    weights = torch.linalg.qr(torch.randn(50, 3, generator=g, dtype=torch.float64)).Q
    weights = torch.linalg.qr(weights - weights.mean(0)).Q * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    left = diagnosis.variance_left((weights @ basis.mT).reshape(50, 1, 8, 8))
    assert_close(left[:5], torch.tensor([1, 5 / 14, 1 / 14, 0, 0], dtype=torch.float64))


def test_the_loss_floor_is_the_integral_over_the_path_and_adds_over_directions():
    scales = torch.tensor([0.05, 0.5, 3.0], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 3, generator=data.generator(0, "test"), dtype=torch.float64)).Q
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    left = (scales**2 / (t[:, None] ** 2 * scales**2 + (1 - t[:, None]) ** 2)).mean(0).sum() / 8
    assert diagnosis.loss_floor(turn * scales) == pytest.approx(float(left), rel=1e-6)
    assert diagnosis.loss_floor(turn[:, :1] * 0) == 0


def test_the_exact_velocity_has_the_loss_of_its_floor_and_the_psnr_that_belongs_to_it():
    batch, width = a_batch(fields=4000, queries=5), 0.2
    draws = 0.7 + width * torch.randn(batch.y_qry.shape, generator=data.generator(1, "test"), dtype=torch.float64)
    batch = replace(batch, y_qry=draws)
    floor = diagnosis.loss_floor(width * torch.eye(5, dtype=torch.float64))
    assert float(flow.loss(GaussianModel(), batch, data.generator(0, "flow"))) == pytest.approx(floor, rel=0.05)  # 4,000 times t
    sample = flow.sample(GaussianModel(), batch, data.generator(0, "samples"), 50, "midpoint")[0]
    mse = float((sample - draws).square().mean())
    assert diagnosis.psnr_of_loss(floor) == pytest.approx(-10 * math.log10(mse), abs=0.2)


def test_floors_fall_with_what_is_known():
    place = worlds.get("separable")
    past, held_out = (place.fields(n, generator=data.generator(0, split), split=split) for n, split in ((100, "train"), (2, "test")))
    found = diagnosis.floors(data.observe(held_out, 51, generator=data.generator(0, "sensors")), past)
    assert found["zero"] > found["field_alone"] > found["state_alone"] > found["states"] > found["readings"] >= 0
    assert found["zero"] == pytest.approx(1.5, abs=0.1) and found["state_alone"] == pytest.approx(
        math.pi / 2 * float(past.std(0).mean()), rel=0.05
    )
    assert found["readings"] < 1e-3  # 51 readings determine six dimensions
    few = diagnosis.floors(data.observe(held_out, 2, generator=data.generator(0, "sensors")), past)
    assert few["readings"] > 0.05 and few["states"] == pytest.approx(found["states"])


def test_the_loss_from_the_true_state_is_that_of_the_flow():
    network, batch = GaussianModel(), a_batch()
    network.y_mean, network.y_std = torch.zeros(1), torch.ones(1)
    row = diagnosis.from_true_state(network, batch, [0.3], seed=3)[0]
    y_0 = torch.randn(batch.y_qry.shape, generator=data.generator(3, "noise")).to(batch.y_qry)
    t = torch.full((len(y_0),), 0.3, dtype=torch.float64)
    assert row["loss"] == pytest.approx(float(flow.loss_at(network, batch, y_0, batch.y_qry, torch.ones_like(y_0), t)))
    assert row["loss_blind"] <= row["loss"]  # the best linear estimate against one with another mean


def test_the_fall_of_a_loss_compares_its_last_two_quarters():
    assert diagnosis.fall([9, 9, 9, 9, 2, 2, 1, 1]) == pytest.approx(0.5)
    assert diagnosis.fall([3.0] * 12) == 0 and diagnosis.fall([5.0]) == 0


def test_trivial_answers_score_what_the_formula_of_the_world_says():
    found = diagnosis.trivial("separable", 400, methods=())
    half, variance = 0.5, 0.25  # mean and variance of a value; the mean of dB over fields lies a little above
    expected = {"zeros": half**2 + variance, "ones": half**2 + variance, "random": variance + 1 / 12, "constant 0.5": variance}
    for name, mse in expected.items():
        assert found[name] == pytest.approx(-10 * math.log10(mse), abs=0.35), name
    apart = worlds.get("separable").fields(500, generator=data.generator(0, "train")).var(0).mean()  # less: the fields share a mean field
    assert found["mean field"] == pytest.approx(-10 * math.log10(apart), abs=0.7)
    assert found["mean field"] - 1 > found["another field"] > found["constant 0.5"]  # two fields differ by twice the variance
    assert diagnosis.trivial("separable", 4)["linear"] > found["constant 0.5"]

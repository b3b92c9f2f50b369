"""Instruments: each measures what it says on models and recurrences whose answer is known."""

import pytest
import torch
from test_flow import GaussianModel, a_batch
from torch.testing import assert_close

from lib import data, diagnosis, model, ssm


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

"""What V5 is shown by: true wave vectors, the exact answer of a known covariance, spectra against the truth, questions between nodes."""

import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lib import contest, data, experts, metrics, png, showcase, v5, worlds
from lib.contest import Case

GAUSSIAN = Case("gaussian", 30, 0.1, fields=60)


@pytest.fixture(scope="module", autouse=True)
def quick_priors():
    """Priors without the expert that takes longest to learn; what is shown does not depend on which there are."""
    with pytest.MonkeyPatch.context() as patch:
        learned = {}

        def prior(world, count, seed):
            key = world, count, seed
            if key not in learned:
                learned[key] = v5.learn(contest.past_fields(*key), experts=("past", "waves"))
            return learned[key]

        patch.setattr(contest, "prior", prior)
        yield


def test_true_waves_make_the_field():
    """cos(k . s + phase) summed gives back interference; a wrong sign or scale of k does not."""
    world, s = worlds.get("interference"), data.grid(9, dtype=torch.float64)
    params = world.draw(3, data.generator(0, "test"))
    k = showcase.true_waves("interference", params)
    start = math.pi * torch.stack([params["kx"] + params["ky"], params["kx"] + params["dx"] + params["ky"] + params["dy"]], 1)
    phase = start + torch.stack([params["phase"], params["phase2"]], 1)
    z = torch.sin(torch.einsum("md,njd->nmj", s, k) + phase[:, None]).sum(-1)
    assert_close((z + 1) / 2, world.at(params, s[None])[..., 0], rtol=0, atol=1e-12)
    assert showcase.true_waves("radial", worlds.get("radial").draw(2, data.generator(0, "test"))).shape[1] == 0


def test_a_plane_wave_is_found_with_its_vector():
    batch = contest.test_batch(Case("plane", fields=4))
    k = showcase.true_waves("plane", worlds.get("plane").draw(4, data.generator(0, "test")))[:, 0]
    its = showcase.found(batch, 0.5, 0.125)
    off = torch.minimum((its.k[:, 0] - k).norm(dim=1), (its.k[:, 0] + k).norm(dim=1))
    assert its.width.shape[1] == 1 and bool((off < 1e-5).all())


def test_the_exact_answer_is_calibrated_and_exact_at_readings_without_noise():
    batch = contest.test_batch(GAUSSIAN)
    answer = showcase.exact(GAUSSIAN, batch)
    z = (answer.mean - batch.y_qry) / answer.std
    assert 0.9 < float(z.square().mean().sqrt()) < 1.1
    quiet = Case("gaussian", 30, 0.0, fields=3)
    batch = contest.test_batch(quiet)
    answer = showcase.exact(quiet, batch)
    assert bool((metrics.error_at_readings(answer.mean.double(), batch) < 1e-5).all())
    with pytest.raises(ValueError, match="covariance of world 'plane' is not known"):
        showcase.exact(Case("plane"), batch)


def test_the_exact_answer_is_at_no_distance_from_itself_and_no_method_comes_nearer_to_the_truth():
    case = Case("gaussian", 30, 0.1, past=12, fields=12)
    assert showcase.distance(case, showcase.exact) == {"mean": 0.0, "deviation": 1.0}
    batch = contest.test_batch(case)
    best = float(showcase.psnr(showcase.exact(case, batch).mean, batch).mean())
    for method in showcase.methods(["gp"]).values():
        assert showcase.distance(case, method)["mean"] > 0.05
        assert float(showcase.psnr(method(case, batch).mean, batch).mean()) < best


def test_the_truth_has_its_own_spectrum_and_a_louder_one_has_more():
    batch = contest.test_batch(Case("radial", fields=3))
    rings, same = showcase.against_truth(batch.y_qry, batch, (32, 32))
    assert rings == list(range(1, 17)) and same == [0.0] * 16
    louder = showcase.against_truth((2 * batch.y_qry).repeat(2, 1, 1), batch, (32, 32))[1]
    assert_close(louder[:4], [20 * math.log10(2)] * 4, rtol=0, atol=1e-6)


def test_finer_questions_keep_fields_and_readings():
    case = Case("radial", 20, fields=2)
    plain, fine = contest.test_batch(case), showcase.finer(case, 63)
    assert_close(fine.s_obs, plain.s_obs, rtol=0, atol=0)
    assert_close(fine.y_obs, plain.y_obs, rtol=0, atol=0)
    nodes = fine.y_qry.unflatten(1, (63, 63))[:, ::2, ::2].flatten(1, 2)  # every other site of 63 is a node of 32
    assert_close(nodes, plain.y_qry, rtol=0, atol=1e-6)


def test_variants_share_parts_with_v5(monkeypatch):
    """The waves put together here are the expert's; weights by evidence without a price are V5's where one expert is far ahead."""
    case = Case("interference", 40, 0.05, past=12, fields=2)
    batch = contest.test_batch(case)
    ours, variants = contest.ours()(case, batch), showcase.variants()
    with monkeypatch.context() as single:
        single.setattr(experts, "STARTS", (6,))
        assert_close(showcase.waves_alone(6)(case, batch).mean, contest.ours(["waves"])(case, batch).mean, rtol=0, atol=1e-9)
    assert_close(variants["no price of waves"](case, batch).mean, ours.mean, rtol=0, atol=1e-6)
    assert float((variants["equal weights"](case, batch).mean - ours.mean).abs().max()) > 0.01
    exactly = variants["waves alone, no tangents"](case, batch)
    assert float(exactly.std.mean()) < 0.9 * float(contest.ours(["waves"])(case, batch).std.mean())


def test_every_expert_of_the_prior_is_opened_and_the_best_evidence_answers():
    case = Case("interference", 40, past=12, fields=2)
    rows = showcase.experts(contest.prior("interference", 12, 0), contest.test_batch(case))
    assert [row["expert"] for row in rows] == ["past", "waves", "all"]
    assert max(rows[:-1], key=lambda row: row["evidence"])["psnr"] == pytest.approx(rows[-1]["psnr"], abs=0.1)


def test_leads_become_a_map_with_a_row_per_question():
    rows = [("a", 13, 0.0, "uniform", 1.5), ("a", 51, 0.1, "hole", -2.0), ("b", 13, 0.0, "uniform", 3.0), ("b", 51, 0.1, "hole", 4.0)]
    leads = pd.DataFrame(rows, columns=["world", "readings", "noise", "layout", "lead"])
    fig = showcase.every(leads)
    assert list(fig.data[0].y) == ["13, uniform", "51, hole, noise 0.1"] and list(fig.data[0].x) == ["a", "b"]
    assert fig.data[0].z.tolist() == [[1.5, 3.0], [-2.0, 4.0]]


def test_the_periodogram_marks_the_waves_of_the_truth_where_they_stay():
    case = Case("plane", fields=1)
    batch = contest.test_batch(case)
    k = showcase.true_waves("plane", worlds.get("plane").draw(1, data.generator(0, "test")))[0]
    fig = showcase.periodogram(batch, showcase.found(batch, 0.5, 0.125), k)
    heat, _, stay, truth = fig.data
    assert_close(stay.x, truth.x, rtol=0, atol=1e-4)
    row, column = divmod(int(torch.as_tensor(heat.z).argmax()), len(heat.x))
    assert abs(heat.x[column] - truth.x[0]) < 0.5 and abs(heat.y[row] - truth.y[0]) < 0.5
    assert png.png(fig)


def test_the_explorer_answers_and_says_when_an_expert_is_not_there(monkeypatch):
    lists, update = showcase.controls(["plane"], 12)
    fig, words = update("plane", "all", "hole", 26, 0.05, 1)
    assert "optimal interpolation" in words and re.search(r"intervals of 50 and 90 % hold \d+% and \d+% of the field", words) and fig.data
    assert lists["experts"].options == ("all", *v5.EXPERTS)
    with pytest.raises(ValueError, match="not both"):
        update("plane", "both", "uniform", 26, 0.0, 0)


def test_milliseconds_are_per_field_and_leave_the_first_call_out(monkeypatch):
    clock = iter([0.0, 0.4, 1.0, 1.2, 2.0, 2.8])
    monkeypatch.setattr(showcase, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    calls = []
    assert showcase.milliseconds(lambda: calls.append(1), fields=4) == pytest.approx(100.0)
    assert len(calls) == 4

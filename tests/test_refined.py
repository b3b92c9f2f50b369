"""The flow from the posterior: it carries a true posterior to itself, starts at its mean, and learns beside a prior of other fields."""

import copy

import pytest
import torch
from torch.testing import assert_close

from lib import data, flow, model, refine, train, v5, worlds
from lib.data import Batch, Prediction

MEAN, STD = 0.3, 0.2


def gaussian(batch):
    """Sites independent of each other, the same mean and deviation everywhere."""
    y = batch.y_qry.new_ones(batch.y_qry.shape)
    return Prediction(MEAN * y, STD * y, lambda count, g: MEAN + STD * torch.randn(count, *y.shape, generator=g))


def built(posterior=gaussian, **switches):
    network = model.build("v5", generator=data.generator(0, "init"), width=16, layers=1, heads=2, inner=8, ffn=16, **switches)
    network.posterior = posterior
    return network.scale_by(data.Scaling(*(torch.tensor([v]) for v in (0.5, 0.3, 0.0, 1.0))))


def a_batch(fields=4, readings=9, queries=500):
    g = data.generator(0, "test")
    site = lambda n: torch.rand(fields, n, 2, generator=g) * 2 - 1  # noqa: E731
    value = lambda n: torch.rand(fields, n, 1, generator=g)  # noqa: E731
    return Batch(site(readings), value(readings), torch.ones(fields, readings, dtype=torch.bool), site(queries), value(queries))


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_untrained_one_euler_step_gives_the_mean(steps):
    draws = flow.sample(built(), a_batch(), data.generator(0, "samples"), 1, "euler", samples=steps)
    assert_close(draws, torch.full_like(draws, MEAN))


def test_untrained_it_carries_the_posterior_to_itself():
    """Each path ends on its start, y - m times exp of the integral of (2 t - 1) / ((1 - t)^2 + t^2), which is 1."""
    start = {}
    sample = flow.sample(built(), a_batch(), data.generator(0, "samples"), 16, "midpoint", callback=lambda t, y: start.setdefault(t, y))
    assert_close(sample[0], start[0.0], atol=1e-4, rtol=0)
    assert float(sample.std()) == pytest.approx(STD, rel=0.05) and float(sample.mean()) == pytest.approx(MEAN, abs=0.02)


def test_where_the_readings_leave_no_doubt_the_network_has_no_say():
    def sure(batch):
        found = gaussian(batch)
        return Prediction(found.mean, 0 * found.std, lambda count, g: found.mean.expand(count, *found.mean.shape))

    network = built(sure)
    torch.nn.init.normal_(network.decode[-1].weight)
    draws = flow.sample(network, a_batch(), data.generator(0, "samples"), 4, "midpoint")
    assert_close(draws, torch.full_like(draws, MEAN))


def test_it_learns_where_the_posterior_is_wrong():
    """The data lie a deviation above the posterior's mean, with half its deviation: samples come to do so too."""
    network, batch, g = built(), a_batch(queries=32), data.generator(0, "flow")
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        truth = MEAN + STD + 0.5 * STD * torch.randn(batch.y_qry.shape, generator=g)
        optimiser.zero_grad()
        flow.loss(network, Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, truth), g).backward()
        optimiser.step()
    mean = flow.sample(network, batch, data.generator(1, "samples"), 1, "euler")
    assert float(mean.mean()) == pytest.approx(MEAN + STD, abs=0.2 * STD)
    drawn = flow.sample(network, batch, data.generator(1, "samples"), 16, "midpoint", samples=4)
    assert 0.3 * STD < float(drawn.std(0).mean()) < 0.7 * STD


def test_untrained_weights_answer_from_stationary_processes_and_trained_ones_ask_for_their_posterior():
    network = built(None)
    assert torch.isfinite(flow.sample(network, a_batch(queries=5), data.generator(0, "samples"))).all()
    network.learned.fill_(True)
    with pytest.raises(RuntimeError, match=r"set model\.posterior"):
        flow.sample(network, a_batch(queries=5), data.generator(0, "samples"))


# ---- what it is trained with ----

PLANE = worlds.get("plane").fields(24, 16)


@pytest.fixture
def quick(monkeypatch):
    """Priors of past fields alone, which take no time to learn; what they were learned from is kept."""
    seen, learn = [], v5.learn
    monkeypatch.setattr(refine.v5, "learn", lambda y: seen.append(y) or learn(y, experts=("past",)))
    return seen


def test_the_prior_of_a_training_has_not_seen_the_fields_of_its_steps(quick):
    network = built(None)
    rest = refine.prepare(network, PLANE)
    batch = data.observe(rest[:2], 9, generator=data.generator(0, "sensors"))
    network.given(batch)
    assert len(quick) == 1 and torch.equal(torch.cat([quick[0], rest]), PLANE)
    refine.settle(network, PLANE)
    network.given(data.observe(rest[:1], 9, generator=data.generator(0, "sensors")))
    assert len(quick) == 2 and torch.equal(quick[1], PLANE)
    assert refine.prepare(model.build("v5-white"), PLANE) is PLANE
    with pytest.raises(ValueError, match="at least 4"):
        refine.prepare(network, PLANE[:3])


def test_tables_hold_the_posterior_at_the_nodes(quick):
    tables = refine.Tables(PLANE[:12])
    whole = data.observe(PLANE[12:15], 9, generator=data.generator(0, "sensors"), noise=0.1)  # solved exactly, all draws were one
    some = Batch(whole.s_obs, whole.y_obs, whole.m_obs, whole.s_qry[:, 40:70], whole.y_qry[:, 40:70])
    truth = v5.predict(tables.prior(), some)
    found = tables(some)
    assert_close(found.mean, truth.mean.float(), atol=1e-6, rtol=1e-5)
    assert_close(found.std, truth.std.float(), atol=1e-6, rtol=1e-5)
    drawn = found.samples(200, torch.Generator().manual_seed(0))
    assert drawn.shape == (200, 3, 30, 1) and len(torch.unique(drawn[:, 0, 0, 0])) == refine.DRAWS
    assert copy.deepcopy(tables) is tables
    again = refine.Tables(PLANE[:12])
    assert_close(again(some).samples(3, torch.Generator().manual_seed(0)), drawn[:3])


def test_tables_are_made_once_per_set_of_readings_and_bounded(quick, monkeypatch):
    asked, predict = [], v5.predict
    monkeypatch.setattr(refine.v5, "predict", lambda prior, batch: asked.append(len(batch.s_obs)) or predict(prior, batch))
    monkeypatch.setattr(refine, "KEPT", 4)
    tables = refine.Tables(PLANE[:12])
    batch = data.observe(PLANE[12:18], 9, generator=data.generator(0, "sensors"))
    for part in (batch[:2], batch[:3], batch[1:3]):
        tables(part)
    assert asked == [1] * 3 and len(tables.kept) == 3
    tables(batch[2:6])
    assert asked == [1] * 7 and len(tables.kept) == 4


def test_a_stopped_training_continues_to_the_same_numbers(quick, tmp_path):
    settings = {"fields": 12, "batch": 4, "readings": 9, "queries": 16, "positions": "step", "validation_fields": 2}
    whole, parts = built(None), built(None)
    train.fit(whole, "plane", train.TrainConfig(steps=6, **settings), tmp_path / "whole")
    train.fit(parts, "plane", train.TrainConfig(steps=6, checkpoint_every=3, **settings), tmp_path / "parts")
    (tmp_path / "again").mkdir()
    run = train.Run(built(None), worlds.get("plane"), train.TrainConfig(steps=6, **settings), torch.device("cpu"), tmp_path / "again")
    for _ in range(3):
        run.advance()
    run.report(), run.save()
    again = built(None)
    train.fit(again, "plane", train.TrainConfig(steps=6, **settings), tmp_path / "again")
    batch = data.observe(worlds.get("plane").fields(2), 9, generator=data.generator(0, "sensors"))
    answers = [flow.sample(net, batch, data.generator(0, "samples"), 2, "midpoint") for net in (whole, parts, again)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])

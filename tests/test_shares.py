"""A batch shared between threads: the same answers, gradients and random streams as the batch as it is."""

import math
import threading

import pytest
import torch

from lib import arms, cost, data, flow, model, shares, train, worlds


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A share may be a single field, so that small batches are shared too."""
    monkeypatch.setattr(shares, "LEAST", 1)


SMALL = {"width": 16, "inner": 16, "ffn": 16, "layers": 2, "heads": 2, "frequencies": 4}
SYSTEMS = {version: {} for version in model.VERSIONS} | {
    "draws everything": {"dropout": 0.2, "depth_drop": 0.5, "self_condition": True},
    "memory draws": {"encoder": "memory", "dropout": 0.2, "depth_drop": 0.5},
}


def observed(fields: int = 5, holes: bool = False) -> data.Batch:
    """A few fields of plane, 40 sites asked; with holes, some fields have fewer readings."""
    known = worlds.get("plane").fields(fields, generator=data.generator(0, "train"))
    batch = data.observe(known, 13)
    mask = batch.m_obs.clone()
    if holes:
        mask[::2, 9:] = False
    return data.Batch(batch.s_obs, batch.y_obs, mask, batch.s_qry[:, :40], batch.y_qry[:, :40])


def learned(network, batch, threads: int):
    """Loss, gradients, the global random state after them, and samples, with so many threads."""
    torch.manual_seed(7)
    network.train().zero_grad()
    with shares.between(threads):
        loss = flow.loss(network, batch, data.generator(0, "noise"))
        loss.backward()
        state = torch.get_rng_state()
        draws = flow.sample(network, batch, data.generator(0, "samples"), 2, "heun", 2)
    return loss.detach(), [w.grad for w in network.parameters()], state, draws


@pytest.mark.parametrize("name, holes", [*((name, False) for name in SYSTEMS), ("v1-mamba", True), ("memory draws", True)])
def test_shares_answer_and_learn_as_the_batch_does(name, holes):
    version = name if name in model.VERSIONS else "v2-transformer"
    network = model.build(version, 1, data.generator(0, "init"), **SMALL, **SYSTEMS[name])
    whole, batch = None, observed(holes=holes)
    for threads in (1, 2, 3):
        found = learned(network, batch, threads)
        whole = whole or found
        torch.testing.assert_close(found[0], whole[0], rtol=1e-5, atol=1e-6)
        assert [g is None for g in found[1]] == [g is None for g in whole[1]] and not all(g is None for g in found[1])
        for one, other in zip(found[1], whole[1], strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
        assert torch.equal(found[2], whole[2])
        torch.testing.assert_close(found[3], whole[3], rtol=1e-4, atol=1e-5)


def test_each_share_is_asked_in_a_thread_of_its_own_with_one_thread_inside():
    seen = []

    def ask(y):
        seen.append((threading.get_ident(), len(y), torch.get_num_threads()))
        meet.wait(20)  # passes only when two threads are here at once
        return 2 * y

    meet, before = threading.Barrier(2), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with shares.between(2), torch.no_grad():
            assert torch.equal(shares.call(ask, torch.nn.Linear(1, 1).eval(), torch.arange(5.0)), 2 * torch.arange(5.0))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len({ident for ident, *_ in seen}) == 2 and sorted(n for _, n, _ in seen) == [2, 3] and {t for *_, t in seen} == {1}


def test_what_cannot_be_shared_is_asked_as_it_stands():
    asked, linear = [], torch.nn.Linear(1, 1)

    def ask(y):
        asked.append(len(y))
        return linear(y)

    y = torch.ones(4, 1)
    shares.call(ask, linear, y)  # outside
    with shares.between(1):
        shares.call(ask, linear, y)
    with shares.between(2):
        shares.call(ask, linear, y[:1])  # fewer fields than shares
        shares.call(ask, linear, y.clone().requires_grad_())  # gradients of the rows are wanted
        with torch.autocast("cpu", torch.bfloat16):
            shares.call(ask, linear, y)
        with shares.between(2):  # within: still shared, and by the same threads
            shares.call(ask, linear, y)
        shares.call(ask, linear, y)
    assert sorted(asked[:5]) == [1, 4, 4, 4, 4] and asked[5:] == [2, 2, 2, 2]


def test_many_threads_are_few_shares_with_several_threads_each(monkeypatch):
    seen = []

    def ask(y):
        seen.append((len(y), torch.get_num_threads()))
        return y

    before = torch.get_num_threads()
    with shares.between(9), torch.no_grad():
        shares.call(ask, torch.nn.Linear(1, 1).eval(), torch.ones(8, 1))
        assert sorted(seen) == [(2, 2)] * shares.MOST
        monkeypatch.setattr(shares, "LEAST", 4)
        shares.call(ask, torch.nn.Linear(1, 1).eval(), torch.ones(8, 1))
        assert sorted(seen[shares.MOST :]) == [(4, 4)] * 2
        shares.call(ask, torch.nn.Linear(1, 1).eval(), torch.ones(7, 1))
        assert seen[shares.MOST + 2 :] == [(7, before)] and torch.get_num_threads() == before


def test_gradients_are_asked_for_once_also_after_the_threads_have_ended():
    network, found = model.build("v2-transformer", 1, data.generator(0, "init"), **SMALL), []
    for threads in (1, 2):
        network.zero_grad()
        torch.manual_seed(3)
        with shares.between(threads):
            loss = flow.loss(network, observed(), data.generator(0, "noise"))
        loss.backward(retain_graph=True)
        found.append(network.enter.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    with pytest.raises(RuntimeError, match="can be asked for once"):
        loss.backward()


def test_dropout_that_is_on_in_a_model_that_answers_draws_for_the_whole_batch():
    network, found = model.build("v2-transformer", 1, data.generator(0, "init"), **SMALL, dropout=0.3).eval(), []
    for part in network.modules():
        part.training = "Dropout" in type(part).__name__
    for threads in (1, 2):
        torch.manual_seed(3)
        batch = observed()
        with shares.between(threads), torch.no_grad():
            y = shares.call(lambda y, b: network.velocity(y, torch.zeros(len(y)), b.s_qry, network.encode(b)), network, batch.y_qry, batch)
        found.append((y, torch.rand(())))
    torch.testing.assert_close(*(y for y, _ in found), rtol=1e-5, atol=1e-6)
    assert found[0][1] == found[1][1]


def test_counters_see_all_that_a_batch_costs():
    network, counts = model.build("v2-transformer", 1, data.generator(0, "init"), **SMALL), []
    for threads in (1, 2):
        network.zero_grad()
        with shares.between(threads):
            counts.append(cost.flops(lambda: flow.loss(network, observed(), data.generator(0, "noise")).backward()))
    assert counts[0] == counts[1] > 0


def test_an_error_in_a_share_is_raised_and_leaves_all_as_before():
    def ask(y):
        raise ValueError(f"not these {len(y)}")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="not these 2"), shares.between(2):
        shares.call(ask, torch.nn.Linear(1, 1), torch.ones(4, 1))
    assert torch.get_num_threads() == before and shares.drawn(lambda count, g: torch.ones(count), 3).sum() == 3
    with pytest.raises(RuntimeError, match="draw one per field"), shares.between(2):
        shares.call(lambda y: shares.drawn(lambda count, g: torch.ones(count), 3), torch.nn.Linear(1, 1), torch.ones(4, 1))


def test_an_arm_with_two_threads_has_the_scores_of_one_and_continues_from_it(tmp_path):
    """The same masks, noise and batches; a training that began with one thread goes on with two."""
    arm = arms.arm("v2-transformer", "plane", **SMALL, steps=30, batch=8, fields=16, test_fields=4, solver_steps=2, dropout=0.1)
    before, rows = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows.append(arms.run(arm, show=False))
        network = model.build(arm.model, 1, data.generator(0, "init"))
        run = train.Run(network, worlds.get("plane"), arm.train, torch.device("cpu"), tmp_path)
        torch.set_num_threads(1)
        for _ in range(10):
            run.advance()
        run.save()
        torch.set_num_threads(2)
        again = train.fit(model.build(arm.model, 1, data.generator(0, "init")), "plane", arm.train, tmp_path, show=False)
    finally:
        torch.set_num_threads(before)
    assert rows[0]["threads"] == 1 and rows[1]["threads"] == 2
    assert math.isclose(rows[0]["psnr"], rows[1]["psnr"], rel_tol=1e-4) and math.isclose(rows[0]["loss"], rows[1]["loss"], rel_tol=1e-4)
    assert math.isclose(again["loss"][-1], rows[0]["loss"], rel_tol=1e-4)

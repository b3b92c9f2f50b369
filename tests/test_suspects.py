"""The suspects: a table that trains, rules that judge, instruments whose answer is known, pictures that follow."""

import math

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lib import arms, claims, data, inquiry, lineup, model, suspects, widgets

TINY = {"width": 16, "inner": 16, "layers": 2, "frequencies": 8, "fields": 8, "steps": 2, "batch": 4, "validation_fields": 2}
TINY |= {"test_fields": 2, "solver_steps": 1, "positions": "step", "sensors": "step"}
NONE = (0.0, -0.1, 0.1)


def tiny(**switches):
    return arms.arm("v1-large", "separable", **{**TINY, **switches})


def network(**switches):
    return model.build(tiny(**switches).model, generator=data.generator(0, "init")).double().eval()


@pytest.fixture(scope="module")
def batch():
    some = arms.test_batch(tiny())
    parts = (some.s_obs, some.y_obs, some.m_obs, some.s_qry, some.y_qry)
    return data.Batch(*(part.double() if part.is_floating_point() else part for part in parts))


def test_the_suspects_are_the_claims_with_a_prior():
    assert set(suspects.SUSPECTS) == {c for c, claim in claims.load().items() if claim.prior is not None} == set(suspects.priors())
    assert len(suspects.SUSPECTS) == 15


@pytest.mark.parametrize("name", suspects.SUSPECTS)
def test_every_value_of_a_suspect_is_another_arm_on_both_bases(name):
    tried = suspects.values(name, 40, 16, 50, cuda=True)
    assert set(suspects.SUSPECTS[name].counts) <= set(tried) and set(suspects.SUSPECTS[name].gpu) <= set(tried)
    for repair in suspects.BASES.values():
        ids = [tiny(solver_steps=50, steps=40, batch=16, **repair).id]
        ids += [tiny(**{"solver_steps": 50, "steps": 40, "batch": 16, **repair, **switches}).id for switches in tried.values()]
        assert len(set(ids)) == len(ids)


def test_values_are_bounded_by_their_number_and_by_the_machine():
    assert list(suspects.values("fourier-scale", 40, 16, 50, most=2)) == ["scale 3", "scale 5"]
    assert "bf16" not in suspects.values("precision", 40, 16, 50) and "bf16" in suspects.values("precision", 40, 16, 50, cuda=True)
    with pytest.raises(ValueError, match="give at least 4"):
        suspects.values("batch-size", 40, 2, 50)


def test_other_batch_sizes_see_as_many_fields():
    assert {v["batch"] * v["steps"] for v in suspects.values("batch-size", 40, 16, 50).values()} == {40 * 16}


@pytest.mark.parametrize(
    ("gain", "speckle", "proved"),
    [
        ((0.6, 0.1, 1.1), NONE, True),
        ((0.6, -0.1, 1.3), NONE, False),
        ((0.4, 0.3, 0.5), NONE, False),
        (NONE, (-3.1, -4.0, -2.0), True),
        (NONE, (-3.1, -7.0, 0.8), False),
        (NONE, (-2.9, -3.5, -2.0), False),
    ],
)
def test_a_cause_gains_half_a_decibel_or_halves_the_speckle(gain, speckle, proved):
    assert suspects.is_cause(gain, speckle) is proved


CLEAR, SMALL, LOSS = (2.0, 1.5, 2.5), (0.3, 0.2, 0.4), (-2.0, -2.5, -1.5)


@pytest.mark.parametrize(
    ("name", "gains", "verdict"),
    [
        ("train-longer", {"twice as long": NONE, "3 times as long": CLEAR}, "confirmed"),
        ("train-longer", {"twice as long": SMALL}, "partly"),
        ("train-longer", {"twice as long": (0.05, 0.04, 0.06)}, "refuted"),
        ("train-longer", {"twice as long": LOSS}, "refuted"),
        ("ode-steps", {"1 step": CLEAR, "twice the steps": NONE}, "refuted"),
        ("batch-size", {"4 times larger": NONE, "4 times smaller": SMALL}, "confirmed"),
        ("batch-size", {"4 times larger": NONE, "4 times smaller": LOSS}, "refuted"),
        ("batch-size", {"4 times larger": (0.3, -0.2, 0.8)}, "partly"),
        ("fourier-scale", {"scale 3": CLEAR, "scale 5": SMALL, "harmonic": (9.0, 8.0, 10.0)}, "confirmed"),
        ("fourier-scale", {"scale 3": CLEAR, "scale 1": (3.0, 2.0, 4.0)}, "partly"),
        ("fourier-scale", {"scale 3": LOSS, "scale 1": CLEAR}, "refuted"),
        ("ot-flow", {"ot": CLEAR}, "refuted"),
    ],
)
def test_verdicts_on_gains(name, gains, verdict):
    assert suspects.judge(name, suspects.effects(name, gains, dict.fromkeys(gains, NONE))) == verdict


@pytest.mark.parametrize(("change", "verdict"), [((-4.0, -5, -3), "confirmed"), ((-1.0, -2, -0.5), "partly"), (NONE, "refuted")])
def test_claims_of_smoothing_look_at_the_speckle(change, verdict):
    assert suspects.judge("smoothness-loss", suspects.effects("smoothness-loss", {"tv": LOSS}, {"tv": change})) == verdict


def test_a_repair_that_the_base_holds_is_judged_from_its_side():
    found = suspects.effects("time-embedding", {"raw": LOSS}, {"raw": (4.0, 3.0, 5.0)})
    assert found["raw"] == {"gain": CLEAR, "speckle": (-4.0, -5.0, -3.0)}
    assert suspects.judge("time-embedding", found) == "confirmed"


def test_the_summary_keeps_to_what_the_author_proposes():
    found = suspects.effects("fourier-scale", {"scale 5": SMALL, "harmonic": CLEAR}, {"scale 5": NONE, "harmonic": NONE})
    assert suspects.summary("fourier-scale", found) == {
        "best": "scale 5",
        "gain": SMALL,
        "quietest": "scale 5",
        "speckle": NONE,
        "cause": False,
    }
    assert suspects.best_scale(found) == 5.0 and suspects.best_scale({"scale 5": {"gain": LOSS}}) == 10.0


def test_rk4_is_equal_within_a_factor_of_two_of_the_range():
    verdicts = [suspects.order_verdict(e, 4.0, 2.0) for e in (0.9, 1.1, 7.9, 8.1)]
    assert verdicts == ["partly", "confirmed", "confirmed", "refuted"]


def test_brier_score_of_priors():
    assert suspects.brier([1.0, 0.0], [True, False]) == 0 and suspects.brier([0.5] * 3, [True, False, True]) == 0.25
    assert suspects.brier([0.9, 0.2], [False, True]) == pytest.approx((0.81 + 0.64) / 2)
    with pytest.raises(ValueError, match="at least one"):
        suspects.brier([], [])


def test_shares_of_groups_by_prior():
    assert suspects.shares([0.9, 0.1, 0.8, 0.2], [True, False, False, False], 2) == [
        (pytest.approx(0.15), 0.0, 2),
        (pytest.approx(0.85), 0.5, 2),
    ]


def test_an_answer_that_is_its_noise_and_a_constant_is_all_noise(batch):
    start = torch.randn(batch.y_qry.shape, generator=data.generator(1, "noise")).double()
    constant = torch.tensor([0.3, -2.0]).double()[:, None, None]
    left = suspects.noise_left(start + constant, start, batch.y_qry)
    assert left["of its starting noise"] == pytest.approx(1) and left["of the truth"] < 0.01
    assert suspects.noise_left(batch.y_qry, start, batch.y_qry)["of the truth"] == pytest.approx(1)


def test_hearing_of_velocities_that_are_known(batch):
    """v = c - y_t takes all of the noise away, v = c none of it; neither minds the readings."""
    exact, deaf = network(), network()
    exact.velocity = lambda y_t, t, s, memory: _looking(exact, memory, 0.5 - y_t)
    deaf.velocity = lambda y_t, t, s, memory: _looking(deaf, memory, torch.full_like(y_t, 0.5))
    rows = [suspects.hearing(n, batch) for n in (exact, deaf)]
    assert rows[0]["state"] == pytest.approx(1) and rows[1]["state"] == pytest.approx(0, abs=1e-12)
    assert rows[1]["sites"] < 1e-12 < 0.5 < rows[0]["sites"]
    assert rows[0]["readings"] == rows[1]["readings"] == 0


def _looking(n, memory, v):
    n.cross(memory.tokens, memory.tokens)
    return v


def test_a_network_without_residual_hears_nothing_of_its_state_before_training(batch):
    described, awake = (suspects.hearing(network(head=head), batch) for head in ("attention", "residual"))
    assert abs(described["state"]) < 0.01 and described["sites"] < 0.1 * awake["sites"]
    assert 1 < described["used"] <= described["of"] == 51 and 0 < described["apart"] < 1


def test_equal_looks_use_all_readings(batch):
    same = network()
    torch.nn.init.zeros_(same.cross.query.weight), torch.nn.init.zeros_(same.cross.query.bias)
    row = suspects.hearing(same, batch)
    assert row["used"] == pytest.approx(51) and row["apart"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_the_looks_are_those_of_the_attention(masked):
    n, g = network(), data.generator(0, "looks")
    q, kv = (torch.randn(2, count, 16, generator=g).double() for count in (5, 7))
    mask = torch.arange(7).expand(2, -1) > 2 if masked else None
    with suspects._looks(n.cross) as looks:
        answer = n.cross(q, kv, mask)
    values = n.cross.key_value(kv).chunk(2, -1)[1].unflatten(-1, (n.cross.heads, -1)).transpose(1, 2)
    assert_close(n.cross.out((looks[0] @ values).transpose(1, 2).flatten(2)), answer)


def test_share_of_the_value_in_a_token(batch):
    n = network()
    with torch.no_grad():
        n.enter.weight[:, :-1] = 0
    assert suspects.value_share(n, batch.s_qry) == 1
    with torch.no_grad():
        n.enter.weight[:], n.enter.weight[0, 0], n.enter.weight[1, -1] = 0, 1, 1
    variance = n.features(batch.s_qry).flatten(0, 1)[:, 0].var().item()
    assert suspects.value_share(n, batch.s_qry) == pytest.approx(1 / (1 + variance))


@pytest.mark.parametrize("clamp", ["none", "hard", "soft"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_clamp_is_counted_as_the_recurrence_has_it(clamp, reverse):
    """One channel, one state, against plain numbers."""
    block = network(step="learned").blocks[0]
    block.clamp, block.reverse = clamp, reverse
    decay, gain = 0.9, 2.0
    for name, value in {"A_log": math.log(-math.log(decay)), "B": gain}.items():
        setattr(block, name, torch.nn.Parameter(torch.full((1, 1), value, dtype=torch.float64)))
    block.dt_log = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    u = [1.0, 2.0, -9.0, 3.0, 0.0]
    h, outside, largest = 0.0, 0, 0.0
    for token in u[::-1] if reverse else u:
        h = decay * h + gain * token
        outside, largest = outside + (abs(h) > 4), max(largest, abs(h))
        h = {"none": h, "hard": max(-4.0, min(4.0, h)), "soft": 4 * math.tanh(h / 4)}[clamp]
    row = suspects._counted(block, torch.tensor(u).double()[None, :, None], 4.0)
    assert row["active"] == outside / 5 > 0 and row["largest"] == pytest.approx(largest)


def test_the_clamp_of_a_network_is_counted_block_by_block(batch):
    rows = suspects.clamping(network(), batch)
    assert [row["block"] for row in rows] == [1, 2] and all(row["active"] == 0 and 0 < row["largest"] < 10 for row in rows)
    assert all(0 < row["active"] < 1 for row in suspects.clamping(network(), batch, limit=0.05))
    assert len(suspects.clamping(network(direction="both"), batch)) == 2
    with pytest.raises(ValueError, match="no clamped state"):
        suspects.clamping(network(step="selective"), batch)
    gap = data.Batch(batch.s_obs, batch.y_obs, torch.zeros_like(batch.m_obs), batch.s_qry, batch.y_qry)
    with pytest.raises(ValueError, match="readings are missing"):
        suspects.clamping(network(), gap)


@pytest.mark.parametrize("two_pi", [False, True])
def test_random_features_forget_a_site_where_the_formula_says(two_pi):
    waves = model.build("v1-large", width=16, inner=16, layers=2, frequencies=2048, scale=3.0, two_pi=two_pi).features.waves
    assert suspects.reach(waves, 32) == pytest.approx(suspects.correlation_length(3.0, two_pi, 32), rel=0.05)
    assert suspects.correlation_length(10.0, True, 32) == pytest.approx(0.349, abs=1e-3)  # a third of a pixel
    assert suspects.reach(torch.zeros(2, 3), 32) == math.inf


def test_a_trained_network_asked_as_its_arm_says_has_its_scores():
    arm = tiny(head="residual")
    trained, _ = arms.fit(arm, show=False)
    row = arms.judge(trained, arm)
    again = inquiry.ask("base", trained, arm, arms.test_batch(arm))
    assert again["psnr"] == pytest.approx(row["psnr"]) and again["speckle_fields"] == pytest.approx(row["speckle_fields"], abs=1e-4)
    assert again["y"].shape == (2, 1024, 1) and inquiry.ask("", trained, arm, arms.test_batch(arm), solver_steps=3)["solver_steps"] == 3


def test_whatever_way_a_network_is_asked_its_row_names_its_training():
    arm = tiny()
    rows = [
        inquiry.ask("a way", network().float(), arm, arms.test_batch(arm), **how) for how in ({}, {"solver": "euler"}, {"solver_steps": 3})
    ]
    assert [row["id"] for row in rows] == [arm.id] * 3
    assert len({arms.rehash(row) for row in rows}) == 3  # by their settings they would be other arms, which nobody trained


def test_only_the_proposed_values_are_trained_on_the_system_as_described():
    tried = {"ode-steps": {"1 step": {}}, "augmentation": {"flips": {"augment": "flips"}, "turns": {"augment": "turns"}}}
    assert list(inquiry.variants(suspects.DESCRIBED, tried)) == ["as described", "augmentation: flips"]
    awake = inquiry.variants(suspects.AWAKE, tried)
    assert list(awake) == ["awake", "augmentation: flips", "augmentation: turns"] and all(v["head"] == "residual" for v in awake.values())


def frame(*rows):
    keep = {"world": "plane", "steps": 1, "batch": 4, "fields": 8, "test_fields": 2, "seed": 0}
    return pd.DataFrame(
        [{**keep, "name": n, "id": n, "psnr": sum(p) / 2, "psnr_fields": p, "speckle": 1.0, "speckle_fields": [1.0, 1.0]} for n, p in rows]
    )


@pytest.mark.parametrize(("constant", "verdict"), [(1.4, "confirmed"), (1.6, "not testable here")])
def test_nothing_is_judged_on_a_base_below_a_constant(monkeypatch, constant, verdict):
    told = {}
    monkeypatch.setattr(claims, "verdict", lambda claim, word, says, **more: told.update({claim: (word, says)}))
    rows = frame(("awake", [1.0, 2.0]), ("augmentation: flips", [2.0, 3.0]))
    found = inquiry.effects(rows, "awake")
    inquiry.verdicts(found, inquiry.rank({"awake": found}), {"awake": rows}, rows, {}, {}, constant)
    assert told["augmentation"][0] == verdict and ("The base scores 1.5 dB" in told["augmentation"][1]) == (constant > 1.5)


def test_what_only_wakes_the_system_as_described_is_partly_true(monkeypatch):
    """A repair without effect on the base that learns is refuted, unless it proves a cause where nothing was learned."""
    told = {}
    monkeypatch.setattr(claims, "verdict", lambda claim, word, says, **more: told.update({claim: (word, more["measured"], more["arms"])}))
    rows = frame(("awake", [1.0, 2.0]), ("no-2d-bias: both ways", [1.0, 2.0]), ("augmentation: flips", [1.0, 2.0]))
    deaf = frame(("as described", [1.0, 2.0]), ("no-2d-bias: both ways", [8.0, 9.0]), ("augmentation: flips", [1.0, 2.0]))
    found = {base: inquiry.effects(its, base) for base, its in (("awake", rows), ("as described", deaf))}
    deaf["id"] = "deaf " + deaf["id"]
    inquiry.verdicts(found["awake"], inquiry.rank(found), {"awake": rows, "as described": deaf}, rows, {}, {}, 0.0)
    assert told["no-2d-bias"][0] == "partly" and told["no-2d-bias"][1]["gain_described"][0] == 7.0
    assert told["no-2d-bias"][2] == ["awake", "no-2d-bias: both ways", "deaf as described", "deaf no-2d-bias: both ways"]
    assert told["augmentation"][0] == "refuted" and "gain_described" not in told["augmentation"][1]
    assert told["augmentation"][2] == ["awake", "augmentation: flips"]


def test_effects_of_a_table_leave_out_what_diverged():
    rows = frame(
        ("awake", [1.0, 2.0]), ("augmentation: flips", [2.0, 4.0]), ("time-embedding: raw", [0.0, 0.0]), ("state-size: 8", [math.nan] * 2)
    )
    found = inquiry.effects(rows, "awake")
    assert found["augmentation"]["flips"]["gain"][0] == 1.5 and found["time-embedding"]["raw"]["gain"][0] == 1.5
    assert "state-size" not in found
    listed = {row["value"]: row["gain"][0] for row in inquiry.listing("awake", rows)}
    assert listed == {"": 0.0, "flips": 1.5, "raw": -1.5}


def test_seeds_are_compared_on_the_same_fields():
    arm = tiny()
    networks = {s: model.build(arm.model, generator=data.generator(s, "init")) for s in (0, 1)}
    found, rows = inquiry.between_seeds(networks, arm, "cpu")
    half = abs(rows[0]["psnr"] - rows[1]["psnr"]) / 2
    assert found["seeds"]["the best seed"]["gain"][0] == pytest.approx(half) and {r["seed"] for r in rows} == {0}
    assert inquiry.between_seeds({0: networks[0]}, arm, "cpu")[0] == {}


def ranked():
    some = {"gain": CLEAR, "speckle": NONE, "cause": True}, {"gain": SMALL, "speckle": (-5.0, -6.0, -4.0), "cause": False}
    names = zip(("state-size", "seeds"), (0.7, 0.1), some, strict=True)
    return [{"name": n, "prior": p, "cause": s["cause"], suspects.AWAKE: s} for n, p, s in names]


def test_the_ranking_starts_with_the_largest_effect():
    rows = [row | {suspects.DESCRIBED: row[suspects.AWAKE]} for row in ranked()]
    assert list(lineup.ranking(rows).layout.yaxis.categoryarray) == ["state-size", "seeds"]
    assert list(lineup.ranking(rows, "speckle").layout.yaxis.categoryarray) == ["seeds", "state-size"]
    prior = next(t for t in lineup.ranking(rows).data if t.name == "prior")
    assert list(prior.x) == [0.7, 0.1]


def test_the_explorer_offers_the_values_of_its_suspect():
    one = {"psnr": (4.0, 3.0, 5.0), "speckle": (47.0, 46.0, 48.0), "gain": (0.5, 0.2, 0.8), "size": "2 steps"}
    keys = [("awake", "", ""), ("awake", "state-size", "8"), ("awake", "seeds", "a"), ("awake", "seeds", "b"), ("as described", "", "")]
    table = [{"base": b, "suspect": s, "value": v, **one} for b, s, v in keys]
    box = widgets.explorer(*lineup.controls(table, {"seeds": 0.1}, {keys[2]: torch.ones(4, 4)}, torch.eye(4), torch.zeros(3, 2)))
    assert box.controls["value"].options == ("8",) and not box.trouble.value
    box.controls["suspect"].value = "seeds"
    assert box.controls["value"].options == ("a", "b") and "10 %" in box.words.value and "+0.50 dB" in box.words.value
    box.controls["value"].value = "b"
    box.controls["base"].value = "as described"
    assert "was not tried" in box.trouble.value

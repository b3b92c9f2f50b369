"""Benchmarks: the contestants of a race compute the same thing, ratios are paired, and the summary names every goal."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from lib import bench, pace, races, ssm


def doubles(inputs):
    return [x.double() for x in inputs]


@pytest.mark.skipif(not races.HAS_MAMBAPY, reason="mambapy, the extra `bench`, is not installed")
def test_mambapy_solves_the_same_problems():
    selective = doubles(races.selective_problem(2, 40, 6, 4))
    assert_close(races.mamba_selective(*selective), ssm.selective_scan(*selective, method="loop"), rtol=1e-10, atol=1e-10)
    ssd = doubles(races.ssd_problem(2, 40, 2, 3, 4))
    assert_close(races.mamba_ssd(*ssd), ssm.ssd_scan(*ssd, method="loop"), rtol=1e-10, atol=1e-10)


def test_s4d_without_oscillation_is_our_bank_with_the_zero_order_hold():
    """Frequency 0 and real C leave sums of real exponentials, which both express; the halves that S4D leaves out double its kernel."""
    u, _, log_A, frequencies, _, D = doubles(races.s4d_problem(2, 40, 6, 8))
    log_dt, log_A = torch.full((6,), math.log(0.03)).double(), log_A + 0.3 * races.draw(*log_A.shape).double()
    C = races.draw(*log_A.shape, seed=1).double()
    theirs = races.s4d(u, log_dt, log_A, 0 * frequencies, torch.stack([C, 0 * C], -1), D)
    ours = ssm.lti_scan(u, log_dt[0].exp(), -log_A.exp(), torch.ones_like(C), 2 * C, D, hold=True, method="loop")
    assert_close(theirs, ours, rtol=1e-10, atol=1e-10)


def test_s4d_oscillates_as_its_recurrence_does():
    """The kernel against h_k = exp(dt A) h_(k-1) + (exp(dt A) - 1) / A u_k with complex states."""
    u, log_dt, log_A, frequencies, C, D = doubles(races.s4d_problem(1, 30, 2, 4))
    A = torch.complex(-log_A.exp(), frequencies)
    decay, h, out = torch.exp(A * log_dt.exp()[:, None]), torch.zeros_like(A), []
    for token in u[0]:
        h = decay * h + (decay - 1) / A * token[:, None]
        out.append(2 * (torch.view_as_complex(C) * h).sum(-1).real + D * token)
    assert_close(races.s4d(u, log_dt, log_A, frequencies, C, D)[0], torch.stack(out), rtol=1e-10, atol=1e-10)


def test_both_encoders_are_the_same_network():
    ours, theirs = races.Layers(16, 2, 32, 2).double().eval(), races.plain_encoder(16, 2, 32, 2).double().eval()
    with torch.no_grad():
        for mine, other in zip(ours.layers, theirs.layers, strict=True):
            attention = mine.attention
            other.self_attn.in_proj_weight.copy_(torch.cat([attention.query.weight, attention.key_value.weight]))
            other.self_attn.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key_value.bias]))
            pairs = ((attention.out, other.self_attn.out_proj), (mine.up, other.linear1), (mine.down, other.linear2))
            for here, there in (*pairs, (mine.norm_1, other.norm1), (mine.norm_2, other.norm2)):
                there.load_state_dict(here.state_dict())
        tokens = races.draw(2, 9, 16).double()
        assert_close(ours(tokens), theirs(tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", races.RACES)
def test_a_race_measures_value_and_every_gradient(name):
    problem = races.RACES[name][1](1, 5)
    assert [g.shape for g in races.call(name, "ours", 1, 5)()] == [x.shape for x in problem]


def test_ratios_are_taken_round_by_round():
    assert bench.ratio("x", [2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == {"x": 3.0, "x_low": 2.0, "x_high": 4.0}


def test_wrong_counts_of_evaluations_are_found(monkeypatch):
    assert not any(races.miscounted(method, n) for method in ("euler", "heun", "heun_open", "rk4", "dopri5") for n in (1, 61))
    monkeypatch.setitem(races.ode.EVALUATIONS, "heun", 3)
    assert races.miscounted("heun", 4)


def test_short_races_give_every_figure_that_a_goal_asks_for():
    found = {"linear": races.linear(short=4, long=8, fields=1, rounds=1), "error": races.error(length=4, fields=1)}
    found["solver"] = races.solver(steps=2, rounds=1, most=3)
    for section, figure, *_ in bench.GOALS:
        assert section not in found or figure in found[section]
    assert found["error"]["not_finite"] == found["solver"]["wrong_counts"] == 0
    assert {section for section, *_ in bench.GOALS} <= set(bench.sections())


def test_extra_memory_is_at_least_what_a_contestant_must_hold():
    assert races.peak("lti", "S4D", 1, 16_000) > 128 * 8 * 16_000 * 8  # the powers: 128 channels, 8 complex states


def test_summary_names_every_goal_and_says_which_are_reached(tmp_path):
    path = tmp_path / "cpu.json"
    figures = {"ssd": {"mambapy_1075": 41.0, "mambapy_1075_low": 39.5, "mambapy_1075_high": 43.0}, "linear": {"lti": 1.2}}
    path.write_text(json.dumps({"figures": figures}))
    lines = bench.summary(path).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [words for _, _, words, _, _ in bench.GOALS]
    told = {line.split("|")[1].strip(): line for line in lines}
    assert told["SSD, 1,075 tokens: time of mambapy over ours"].endswith("| at least 40 | 41 | 39.5 to 43 | reached |")
    assert told["fixed bank, 16,435 tokens over 1,075: cost over linear"].endswith("| at most 1.1 | 1.2 |  | missed |")
    assert sum(line.endswith("| open |") for line in lines) == len(lines) - 2


def test_chosen_sections_are_measured_and_the_others_kept(tmp_path, monkeypatch):
    path = tmp_path / "outputs" / "reference" / "bench" / "cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"figures": {"old": {"a": 1.0}, "solver": {"euler": 9.0}}}))
    monkeypatch.setattr(bench, "measured", lambda name, device: {"solver": {"euler": 0.25}}[name])
    bench.run(tmp_path, "cpu", ["solver"], say=lambda text: None)
    kept = json.loads(path.read_text())
    assert kept["figures"] == {"old": {"a": 1.0}, "solver": {"euler": 0.25}} and kept["provenance"]["solver"]["threads"] == 1
    with pytest.raises(ValueError, match="unknown section sampler; known: training_step"):
        bench.run(tmp_path, "cpu", ["sampler"], say=lambda text: None)


def test_a_stack_of_seeds_gives_the_gradients_of_its_seeds():
    small = {"fields": 2, "width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4}
    stacked, separate = pace.stacked("cpu", 2, **small)(), pace.separate("cpu", 2, **small)()
    assert not torch.equal(separate[0]["network.enter.weight"], separate[1]["network.enter.weight"])
    for seed, gradients in enumerate(separate):
        for name, gradient in gradients.items():
            assert_close(stacked[name][seed], torch.zeros_like(stacked[name][seed]) if gradient is None else gradient)


def test_an_arm_asked_by_more_steps_takes_longer():
    threads = torch.get_num_threads()
    found = pace.arm(steps=2, fields=1, rounds=1, seeds=2)
    assert 0 < found["training_seconds"] < found["seconds_10"] < found["seconds_50"] and 0 < found["alone_10"] < found["alone_50"]
    assert torch.get_num_threads() == threads
    assert {figure for section, figure, *_ in bench.GOALS if section == "arm"} <= set(found)


def test_the_training_of_a_flow_is_timed_and_judged():
    found = pace.white(steps=2, fields=8, held_out=2)
    assert found["seconds"] > 0 and 0 < found["psnr"] < 60


def test_one_field_is_timed_for_every_goal():
    found = pace.field(rounds=1, past=24)
    assert {figure for section, figure, *_ in bench.GOALS if section == "field"} <= set(found)
    assert all(value > 0 for value in found.values())


def test_the_memory_of_a_wide_answer_is_that_of_the_whole_process():
    held = torch.ones(40_000_000, dtype=torch.float64)
    found = pace.wide(rounds=1, side=48)
    assert {figure for section, figure, *_ in bench.GOALS if section == "wide"} == set(found)
    assert found["seconds"] > 0 and found["gb"] > held.nbytes / 1e9

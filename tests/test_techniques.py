"""The ten techniques: the property that defines each, and that every one trains, samples with every solver and resumes to the same bits."""

import math
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch.testing import assert_close

from lib import arms, claims, data, flow, model, ode, paths, penalties, schedules, techniques, train, worlds
from lib.layers import skipped

SMALL = {"width": 16, "layers": 2, "heads": 2, "inner": 16, "ffn": 24}
BASES = ("v2-fixed", "v4-transformer", "v5-white")
CONFIG = train.TrainConfig(
    fields=16, steps=12, batch=4, queries=20, positions="step", validate_every=6, validation_fields=3, checkpoint_every=5
)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def build(version="v2-fixed", steps=12, names=(), **switches):
    """A tiny version with a set of techniques, and how it is trained."""
    chosen = techniques.merge(names, steps) | switches
    of_model = {k: v for k, v in chosen.items() if hasattr(model.ModelConfig(), k)}
    of_training = {k: v for k, v in chosen.items() if k not in of_model}
    sizes = {**SMALL, "head_width": 8 if model.VERSIONS[version].head_width else 0}
    if model.VERSIONS[version].frequencies > 24:
        sizes["frequencies"] = 8
    return model.configure(version, **{**sizes, **of_model}), replace(CONFIG, steps=steps, **of_training)


def network(version="v2-fixed", seed=0, **switches):
    """An untrained tiny network in double precision without dropout."""
    return model.build(build(version, dropout=0.0, **switches)[0], 1, data.generator(seed, "init")).double().eval()


def a_batch(fields=3, readings=6, queries=9, seed=0):
    g = data.generator(seed, "test")
    site = lambda n: torch.rand(fields, n, 2, generator=g, dtype=torch.float64) * 2 - 1  # noqa: E731
    value = lambda n: torch.rand(fields, n, 1, generator=g, dtype=torch.float64)  # noqa: E731
    return data.Batch(site(readings), value(readings), torch.ones(fields, readings, dtype=torch.bool), site(queries), value(queries))


def at(net, batch, t=0.4, **more):
    """What a network says at fixed noise and time t."""
    y_t = torch.randn(batch.y_qry.shape, generator=data.generator(1, "noise"), dtype=torch.float64)
    return net.network(y_t, torch.full((len(y_t),), t, dtype=torch.float64), batch.s_qry, net.encode(batch), **more)


# ---- all of them ----


def test_no_two_techniques_set_the_same_switch_and_each_has_a_claim():
    ledger = claims.load()
    for a, b in combinations(techniques.TECHNIQUES.values(), 2):
        assert not set(a.switches(100)) & set(b.switches(100))
    assert [t.claim for t in techniques.TECHNIQUES.values()] == [i for i, claim in ledger.items() if claim.source == ("T",)]


@pytest.mark.parametrize("version", BASES)
@pytest.mark.parametrize("names", [*([n] for n in techniques.TECHNIQUES), list(techniques.TECHNIQUES)], ids="+".join)
def test_every_technique_trains_and_samples_with_every_solver(version, names):
    config, training = build(version, 4, names)
    net = model.build(config, 1, data.generator(0, "init"))
    before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    history = train.fit(net, "plane", training, show=False)
    moved = [not torch.equal(a, b) for a, b in zip(before, (p for p in net.parameters() if p.requires_grad), strict=True)]
    assert all(moved) and all(math.isfinite(v) for v in history["loss"] + history["validation"])
    batch = data.observe(worlds.get("plane").fields(2, generator=data.generator(0, "test")), 8)
    batch = replace(batch, s_qry=batch.s_qry[:, :12], y_qry=batch.y_qry[:, :12])
    for method in ode.METHODS:
        draw = flow.sample(net, batch, data.generator(0, "samples"), 2, method)
        assert torch.isfinite(draw).all() and draw.shape == (1, 2, 12, 1)


@pytest.mark.parametrize("names", [["T1", "T7"], ["T1", "T3", "T6"], ["T10", "T4", "T9"], list(techniques.TECHNIQUES)], ids="+".join)
def test_a_stopped_training_continues_to_the_same_bits(tmp_path, names):
    config, training = build("v2-fixed", 12, names)
    fit = lambda place: train.fit(net := model.build(config, 1, data.generator(0, "init")), "plane", training, place, show=False) and net  # noqa: E731
    whole = fit(None)
    for step in (4, 8):  # before and after a reflow freezes its model
        place = tmp_path / str(step)
        place.mkdir()
        net = model.build(config, 1, data.generator(0, "init"))
        run = train.Run(net, worlds.get("plane"), training, torch.device("cpu"), place)
        for _ in range(step):
            run.advance()
            if run.step % training.validate_every == 0:
                run.report()
        run.save()
        torch.manual_seed(5)  # what ran in between does not matter
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fit(place).state_dict().values(), strict=True))


def test_a_seed_gives_the_shared_weights_the_same_values_with_and_without_techniques():
    plain, rich = network(), network(conditioning="adaln", self_condition=True, depth_drop=0.1, path="cosine")
    mine = rich.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in plain.state_dict().items())


# ---- T1 reflow ----


def test_a_reflow_trains_its_second_half_on_what_the_frozen_model_answers():
    config, training = build(names=["T1"])
    net = model.build(config, 1, data.generator(0, "init"))
    run = train.Run(net, worlds.get("plane"), training, torch.device("cpu"), None)
    while run.step < 7:
        run.advance()
    frozen, batch = run.objective.teacher, next(run.batches)
    seen = flow.look(net.eval(), batch, data.generator(3, "flow"), run.objective.couple())
    end = flow.carry(frozen, batch, frozen.encode(batch), seen.y_0, training.reflow_steps, "euler")
    assert_close(seen.y_1, end)
    assert float((seen.y_1 - net.normalise(batch.y_qry)).abs().max()) > 0.1


# ---- T2 multi-scale encoding ----


def test_the_encoding_holds_the_bands_1_to_32_along_each_axis():
    waves = network(**techniques.merge(["T2"], 12)).features.waves
    cycles = (waves / math.pi).T  # cycles over the domain, whose width is 2
    assert sorted(cycles.abs().sum(1).round().int().tolist()) == sorted(2 * [1, 2, 4, 8, 16, 32])
    assert (cycles.abs().min(1).values == 0).all() and not waves.requires_grad


# ---- T3 consistency ----


class Straight:
    """Stands in for a network: the data it estimates are `guess(t)`."""

    channels = 1

    def __init__(self, guess, kind="linear"):
        self.guess, self.config = guess, model.ModelConfig(prediction="data", path=kind)

    normalise = staticmethod(lambda y: y)
    encode = staticmethod(lambda batch: None)

    def network(self, y_t, t, s_qry, memory):
        return self.guess(t)[:, None, None].expand_as(y_t)


def test_estimates_that_do_not_change_with_time_are_consistent_and_others_are_not():
    def lost(guess):
        net = Straight(guess)
        return float(penalties.consistency(net, flow.look(net, a_batch(400), data.generator(0, "flow")), data.generator(0, "consistency")))

    assert lost(lambda t: 0 * t + 0.3) == 0
    # the later time lies evenly between t and 1: E (t' - t)^2 = E (1 - t)^2 / 3 = 1/9
    assert lost(lambda t: t) == pytest.approx(1 / 9, rel=0.1)


def test_consistency_moves_the_earlier_estimate_only_and_leaves_the_flow_loss_its_draws():
    net, batch = network(), a_batch()
    seen = flow.look(net, batch, data.generator(0, "flow"))
    lost = penalties.consistency(net, seen, data.generator(0, "consistency"))
    share = torch.rand(3, generator=data.generator(0, "consistency")).double()
    later = flow.estimated(net, flow.look_at(net, batch, seen.y_0, seen.y_1, seen.known, seen.t + share * (1 - seen.t))).detach()
    expected = (flow.estimated(net, seen) - later).square().mean()
    slopes = [torch.autograd.grad(value, net.enter.weight, retain_graph=True)[0] for value in (lost, expected)]
    assert_close(lost, expected)
    assert_close(*slopes)
    plain, also = (train.fit(_net(), "plane", replace(CONFIG, consistency=weight), show=False)["loss"] for weight in (0.0, 1e-30))
    assert plain == also


def _net():
    return model.build(build(dropout=0.0)[0], 1, data.generator(0, "init"))


# ---- T4 frequency loss ----


def test_the_transform_of_scattered_sites_is_the_fourier_transform_on_a_grid():
    """On an even grid over the whole domain its sums are those of the FFT."""
    n = 20
    axis = -1 + 2 * torch.arange(n, dtype=torch.float64) / n
    s = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, n * n, 2)
    y = torch.rand(1, n * n, 1, generator=data.generator(0, "test"), dtype=torch.float64)
    real, imaginary = penalties.transform(y, s, torch.ones_like(y))
    whole = torch.fft.fft2(y.reshape(n, n)) / n
    for place, (k1, k2) in enumerate(penalties.waves(penalties.WAVES).int().tolist()):
        theirs = whole[k2 % n, k1 % n] * (-1) ** (k1 + k2)  # the grid starts at -1
        assert_close(torch.complex(real, imaginary)[0, place, 0], theirs, **EXACT)


def test_wave_vectors_are_one_of_each_pair():
    k = penalties.waves(3)
    every = {tuple(v) for v in torch.cat([k, -k]).int().tolist()}
    assert len(k) == (7 * 7 - 1) // 2 and len(every) == 7 * 7 - 1 and (0, 0) not in every


def test_the_frequency_loss_needs_scattered_queries_only_and_weighs_coherent_errors_more():
    batch = a_batch(20, queries=200)
    net = Straight(lambda t: 0 * t)
    seen = flow.look(net, batch, data.generator(0, "flow"))
    wave = torch.cos(math.pi * (2 * batch.s_qry[..., :1] + batch.s_qry[..., 1:]))
    rough = torch.randn(wave.shape, generator=data.generator(2, "noise"), dtype=torch.float64) / math.sqrt(2)
    truth = penalties.spectrum(net, replace(seen, y_1=torch.zeros_like(wave)))
    assert float(truth) == pytest.approx(0, abs=1e-5)

    def squares(error):
        parts = penalties.transform(error, batch.s_qry, torch.ones_like(error))
        return float(sum(part.square() for part in parts).mean())

    assert squares(wave) > 1.5 * squares(rough)  # one wave of the 144 holds half of its power times 200 sites


def test_unknown_queries_do_not_enter_the_spectrum():
    batch, kept = a_batch(4, queries=30), torch.arange(30) % 3 != 0
    holes = replace(batch, y_qry=torch.where(kept[:, None], batch.y_qry, torch.nan))
    fewer = replace(batch, s_qry=batch.s_qry[:, kept], y_qry=batch.y_qry[:, kept])
    net, t = Straight(torch.sin), torch.rand(4, generator=data.generator(0, "flow"), dtype=torch.float64)
    lost = [
        penalties.spectrum(net, flow.look_at(net, b, torch.zeros_like(b.y_qry), *flow._targets(net, b), t)) for b in (batch, holes, fewer)
    ]
    assert_close(lost[1], lost[2])
    assert abs(float(lost[0] - lost[1])) > 1e-3


# ---- T5 AdaLN ----


@pytest.mark.parametrize("version", BASES)
def test_adaln_starts_blind_to_time_and_learns_to_scale_and_shift_every_norm(version):
    net, batch = network(version, conditioning="adaln"), a_batch()
    assert_close(at(net, batch, 0.1), at(net, batch, 0.9), **EXACT)
    torch.nn.init.normal_(net.tune.weight, std=0.1, generator=data.generator(0, "test"))
    assert float((at(net, batch, 0.1) - at(net, batch, 0.9)).detach().abs().max()) > 1e-3
    layers = len(net.reads) or len(net.blocks)
    at(net, batch).square().sum().backward()
    rows = net.tune.weight.grad.reshape(layers, 4, -1).abs().sum(-1)
    assert rows.shape == (layers, 4) and (rows > 0).all()  # scale and shift of both norms of each layer


def test_a_tuned_norm_is_scaled_and_shifted():
    from lib.encoders import tuned

    y, tune = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    norm = torch.nn.LayerNorm(8)
    for place in (0, 1):
        expected = norm(y) * (1 + tune[:, 2 * place, None]) + tune[:, 2 * place + 1, None]
        assert_close(tuned(norm, tune, place)(y), expected)
    assert tuned(norm, None, 0) is norm


def test_adaln_of_a_scan_is_refused():
    with pytest.raises(ValueError, match=r'conditioning="adaln" needs the encoder transformer or memory'):
        model.configure("v1-mamba", conditioning="adaln")


# ---- T6 self-conditioning ----


@pytest.mark.parametrize("version", BASES)
@pytest.mark.parametrize("kind", paths.PATHS)
def test_every_evaluation_sees_the_estimate_at_its_own_point(version, kind):
    """With every solver, at every step: the velocity is that of the network shown the data which it estimates there."""
    net, batch = network(version, self_condition=True, path=kind), a_batch()
    memory, asked = net.encode(batch), []
    y_t, t = torch.randn(3, 9, 1, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    first = net.network(y_t, t, batch.s_qry, memory)
    estimate = first if net.config.prediction == "data" else paths.data(kind, first, y_t, t)
    out = net.network(y_t, t, batch.s_qry, memory, estimate)
    expected = out if net.config.prediction == "velocity" else paths.velocity(kind, out, y_t, t)
    assert_close(net.velocity(y_t, t, batch.s_qry, memory), expected)
    assert float((out - first).detach().abs().max()) > 1e-4
    plain = net.network
    net.network = lambda y, t, s, m, estimate=None: asked.append(estimate is not None) or plain(y, t, s, m, estimate)
    for method, count in (("euler", 3), ("midpoint", 6), ("heun", 6), ("heun_open", 5), ("rk4", 12)):
        asked.clear()
        flow.sample(net, batch, data.generator(0, "samples"), 3, method)
        assert asked == [False, True] * count
    asked.clear()
    flow.sample(net, batch, data.generator(0, "samples"), 1, "dopri5")
    assert asked == [False, True] * (len(asked) // 2) and len(asked) > 12


def test_training_shows_the_estimate_to_half_of_the_fields_and_teaches_nothing_through_it():
    net, batch = network(self_condition=True).train(), a_batch(400)
    estimate = torch.ones_like(batch.y_qry, requires_grad=True)
    torch.manual_seed(0)
    changed = (at(net, batch, estimate=estimate) - at(net, batch)).detach().abs().amax((1, 2)) > 1e-9
    assert 150 < int(changed.sum()) < 250
    seen = []
    plain = net.network
    net.network = lambda y, t, s, m, estimate=None: seen.append(estimate) or plain(y, t, s, m, estimate)
    flow.loss(net, batch, data.generator(0, "flow")).backward()
    assert seen[0] is None and not seen[1].requires_grad and float(net.recall.weight.grad.abs().max()) > 0


# ---- T7 weight average ----


def test_the_average_looks_back_on_a_tenth_of_the_run():
    for steps in (100, 1600):
        decay = techniques.merge(["T7"], steps)["average"]
        assert 1 / (1 - decay) == pytest.approx(steps / 10, rel=1e-3)
    assert techniques.merge(["T7"], 4)["average"] == 0.5


def test_the_answering_weights_are_the_decaying_average_of_those_passed():
    config, training = build(names=["T7"], steps=40)
    net = model.build(config, 1, data.generator(0, "init"))
    run = train.Run(net, worlds.get("plane"), training, torch.device("cpu"), None)
    mean = None
    for _ in range(12):
        run.advance()
        now = net.decode[0].weight.detach().clone()
        mean = now if mean is None else training.average * mean + (1 - training.average) * now
    run.finish()
    assert_close(net.decode[0].weight.detach(), mean)
    assert float((mean - now).abs().max()) > 1e-4


# ---- T8 cosine path ----


@pytest.mark.parametrize("kind", paths.PATHS)
def test_a_path_runs_from_noise_to_data_with_its_own_velocity(kind):
    y_0, y_1 = torch.randn(2, 4, 7, 1, generator=data.generator(0, "noise"), dtype=torch.float64)
    where = lambda t: paths.point(kind, y_0, y_1, torch.full((4,), t, dtype=torch.float64))  # noqa: E731
    assert_close(where(0.0)[0], y_0, **EXACT)
    assert_close(where(1.0)[0], y_1, **EXACT)
    for t in (0.1, 0.5, 0.9):
        h = 1e-5
        assert_close((where(t + h)[0] - where(t - h)[0]) / (2 * h), where(t)[1], rtol=1e-7, atol=1e-7)
        time = torch.full((4,), t, dtype=torch.float64)
        y_t, u = where(t)
        assert_close(paths.data(kind, u, y_t, time), y_1, **EXACT)
        assert_close(paths.velocity(kind, y_1, y_t, time), u, **EXACT)


def test_the_cosine_path_keeps_unit_variance():
    y_0, y_1 = torch.randn(2, 1, 200_000, 1, generator=data.generator(0, "noise"), dtype=torch.float64)
    for t in (0.25, 0.5, 0.75):
        assert float(paths.point("cosine", y_0, y_1, torch.tensor([t], dtype=torch.float64))[0].var()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_sampler_follows_the_cosine_path_to_the_data(prediction):
    """A network that knows the data reaches them, as velocity and as data, and a stage at t = 1 stays finite."""
    batch, start = a_batch(), torch.randn(3, 9, 1, generator=data.generator(4, "noise"), dtype=torch.float64)
    net = network(path="cosine", prediction=prediction, normalisation="none", output="free")

    def knows(y_t, t, s_qry, memory, estimate=None):
        return batch.y_qry if prediction == "data" else paths.point("cosine", start, batch.y_qry, t)[1]

    net.network = knows
    for method, tolerance in (("euler", 0.03), ("midpoint", 0.03), ("heun_open", 0.03)):
        end = flow.sample(net, batch, data.generator(0, "samples"), 50, method, start=start)[0]
        assert_close(end, batch.y_qry, rtol=0, atol=tolerance * float((start - batch.y_qry).abs().max()))


# ---- T9 clipping, warm-up, cosine ----


def test_the_rate_rises_over_a_twentieth_and_falls_to_zero_and_gradients_are_clipped():
    config, training = build(names=["T9"], steps=200)
    rates = [schedules.learning_rate(step, training) / training.rate for step in range(200)]
    assert rates[9] == pytest.approx(1) and rates[0] == pytest.approx(0.1) and rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[9:]))
    net = model.build(config, 1, data.generator(0, "init"))
    run = train.Run(net, worlds.get("plane"), training, torch.device("cpu"), None)
    with torch.no_grad():
        net.decode[-1].weight.mul_(100)
    run.advance()
    norm = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1, rel=1e-3)


# ---- T10 stochastic depth ----


def test_layers_are_left_out_in_a_share_of_the_fields_that_rises_to_a_tenth():
    net = network(depth_drop=0.1, layers=4).train()
    rates = []
    before, after = torch.zeros(20_000, 1, 1), torch.ones(20_000, 1, 1)
    torch.manual_seed(0)
    for place in range(4):
        out = net._past(place, before, after)
        rates.append(float((out == 0).float().mean()))
        assert float(out.mean()) == pytest.approx(1, abs=0.01)  # the mean is that of the whole layer
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1], abs=0.006)
    assert net.eval()._past(3, before, after) is after


def test_a_field_skips_a_layer_as_a_whole():
    before, after = torch.zeros(1000, 3, 2), torch.ones(1000, 3, 2)
    torch.manual_seed(0)
    out = skipped(before, after, 0.5)
    assert torch.equal(out, out[:, :1, :1].expand_as(out)) and set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("version", BASES)
def test_every_layer_of_every_encoder_may_be_skipped(version):
    net, batch = network(version, depth_drop=0.9), a_batch(64)
    asked = []
    net._past = lambda place, before, after: asked.append(place) or after
    at(net, batch)
    assert asked == list(range(len(net.blocks) + len(net.reads)))


# ---- what an arm reports ----


def test_an_arm_counts_both_calls_of_a_network_that_conditions_on_itself():
    small = {**SMALL, "frequencies": 4, "steps": 1, "batch": 2, "fields": 4, "test_fields": 2, "queries": 9, "validation_fields": 2}
    counts = [
        arms.run(arms.arm("v2-fixed", "plane", self_condition=on, solver="euler", solver_steps=3, **small), show=False)["evaluations"]
        for on in (False, True)
    ]
    assert counts == [3, 6]

"""Training: bit-exact resume after kill -9, signals, broken checkpoints, divergence, the rate as a function of the step."""

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lib import checkpoint, data, flow, model, train

SMALL = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4}
CONFIG = train.TrainConfig(
    fields=24, steps=60, batch=4, readings=8, queries=8, sensors="step", positions="step", noise=0.05,
    average=0.9, clip=1.0, warmup=5, schedule="cosine", validate_every=20, validation_fields=3, checkpoint_every=10,
)  # fmt: skip
VERSION = model.configure("v2-transformer", **SMALL)  # with dropout, so that the global generator is part of the state


def fit(folder=None, config=CONFIG, version=VERSION, device="cpu"):
    network = model.build(version, generator=data.generator(0, "init"))
    return network, train.fit(network, "plane", config, folder, device, show=False)


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def without_clock(history):
    return {k: v for k, v in history.items() if k != "seconds"}


SCRIPT = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, {tests!r})
    import time, test_train
    from lib import train
    advance = train.Run.advance
    def slow(run):
        advance(run)
        print(run.step, flush=True)
        time.sleep(0.02)
    train.Run.advance = slow
    test_train.fit({folder!r})
    """
)


def start(folder):
    script = SCRIPT.format(tests=os.path.dirname(__file__), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_step(process, step):
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(process.stderr.read())


def test_killed_in_the_middle_it_continues_to_the_same_bits(tmp_path):
    whole, history = fit()
    process = start(tmp_path)
    until_step(process, 33)  # checkpoints stand at 10, 20, 30
    process.kill()
    process.wait()
    assert checkpoint.load(tmp_path / "latest.pt")["step"] in (20, 30)
    continued, its_history = fit(tmp_path)
    assert same_weights(whole, continued)
    assert without_clock(history) == without_clock(its_history)


def test_sigterm_saves_and_exits(tmp_path):
    process = start(tmp_path)
    until_step(process, 5)  # before the first regular checkpoint
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert 5 <= checkpoint.load(tmp_path / "latest.pt")["step"] < 60
    assert same_weights(fit()[0], fit(tmp_path)[0])


def test_training_does_not_depend_on_the_global_generator_or_on_a_folder(tmp_path):
    torch.manual_seed(1)
    one, _ = fit()
    torch.manual_seed(2)
    two, _ = fit(tmp_path)
    assert same_weights(one, two)
    assert json.loads((tmp_path / "history.json").read_text())["step"] == [20, 40, 60]


def test_a_finished_training_is_only_loaded(tmp_path):
    trained, _ = fit(tmp_path)
    began = time.perf_counter()
    again, _ = fit(tmp_path)
    assert same_weights(trained, again)
    assert checkpoint.load(tmp_path / "latest.pt")["step"] == 60
    assert time.perf_counter() - began < 20


def test_the_weights_that_answer_are_the_averaged_ones(tmp_path):
    averaged, _ = fit(tmp_path)
    state = checkpoint.load(tmp_path / "latest.pt")
    assert torch.equal(averaged.enter.weight, state["average"]["module.enter.weight"])
    assert not torch.equal(averaged.enter.weight, state["model"]["enter.weight"])


def test_best_weights_are_those_of_the_lowest_validation_loss(tmp_path):
    _, history = fit(tmp_path)
    best = checkpoint.load(tmp_path / "best.pt")
    assert history["step"][history["validation"].index(min(history["validation"]))] == best["step"]
    loaded = train.restore(model.build(VERSION), tmp_path / "best.pt")
    run = train.Run(model.build(VERSION), train.worlds.get("plane"), replace(CONFIG, average=0.0), torch.device("cpu"), None)
    run.model.load_state_dict(loaded.state_dict())
    assert run.validate() == pytest.approx(min(history["validation"]), rel=1e-6)


def test_a_training_that_only_harms_leaves_the_weights_it_began_with(tmp_path):
    harmful = replace(CONFIG, rate=3.0, warmup=0, schedule="constant", clip=0.0, average=0.0, steps=20, validate_every=5)
    began = model.build(VERSION, generator=data.generator(0, "init"))
    last, _ = fit(config=harmful)
    best, history = fit(tmp_path, replace(harmful, answer="best"))
    run = train.Run(began, train.worlds.get("plane"), harmful, torch.device("cpu"), None)  # scales the values by the fields it sees
    assert min(history["validation"]) > run.validate()
    assert same_weights(best, began) and not same_weights(last, began)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 0


def test_early_stop(tmp_path):
    stuck = replace(CONFIG, rate=0.0, warmup=0, schedule="constant", patience=2, steps=500, average=0.0)
    _, history = fit(tmp_path, stuck)
    assert history["step"] == [20, 40, 60]  # the first is the best, two without improvement follow
    assert checkpoint.load(tmp_path / "latest.pt")["step"] == 60


def test_periodic_checkpoints_are_kept(tmp_path):
    fit(tmp_path, replace(CONFIG, keep_every=30))
    assert sorted(p.name for p in tmp_path.glob("step-*.pt")) == ["step-30.pt", "step-60.pt"]


def test_a_training_with_other_settings_is_not_continued(tmp_path):
    fit(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"other settings \(rate: 0.001 there, 0.002 now\); choose another folder"):
        fit(tmp_path, replace(CONFIG, rate=2e-3))


def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    network = model.build(VERSION, generator=data.generator(0, "init"))
    run = train.Run(network, train.worlds.get("plane"), CONFIG, torch.device("cpu"), tmp_path)
    for _ in range(10):
        run.advance()
    run.save()
    with torch.no_grad():
        network.enter.weight.fill_(float("nan"))
    run.advance()
    with pytest.raises(train.TrainingDiverged, match=r"loss is nan before step 11: lower the rate.*latest.pt"):
        run.report()
    with pytest.raises(train.TrainingDiverged, match="last good checkpoint is kept"):
        run.save()
    assert all(torch.isfinite(v).all() for v in checkpoint.load(tmp_path / "latest.pt")["model"].values())


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_a_broken_checkpoint_is_named_and_the_previous_one_offered(tmp_path, damage):
    fit(tmp_path)
    latest = tmp_path / "latest.pt"
    if damage == "truncated":
        latest.write_bytes(latest.read_bytes()[:500])
    elif damage == "text":
        latest.write_text("not a checkpoint")
    else:
        torch.save({"weights": torch.zeros(2)}, latest)
    with pytest.raises(checkpoint.CheckpointError, match=r"latest.pt is.*(best|previous).pt \(step \d+\) is intact: move it to latest.pt"):
        fit(tmp_path)
    for other in ("previous.pt", "best.pt"):
        (tmp_path / other).unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"delete latest\.pt to start again"):
        fit(tmp_path)


def test_weights_of_another_configuration_are_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="trained with another configuration"):
        train.restore(model.build("v1-mamba"), tmp_path / "best.pt")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint at"):
        train.restore(model.build(VERSION), tmp_path / "nowhere.pt")


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_is_there_at_every_moment_of_the_next_ones_saving(tmp_path, monkeypatch, links):
    """Seen before and after every change of a name, where a kill may fall: the newest whole one, and the one before in `keep`."""
    latest, keep = tmp_path / "latest.pt", tmp_path / "previous.pt"
    seen, replace_, link = [], os.replace, os.link

    def watched(change):
        def then(*names):
            seen.append(checkpoint.load(latest)["step"])
            change(*names)
            seen.append(checkpoint.load(latest)["step"])

        return then

    def refused(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    checkpoint.save({"step": 1}, latest, keep=keep)
    monkeypatch.setattr(os, "replace", watched(replace_))
    monkeypatch.setattr(os, "link", watched(link) if links else refused)
    for step in (2, 3):
        checkpoint.save({"step": step}, latest, keep=keep)
        assert (checkpoint.load(latest)["step"], checkpoint.load(keep)["step"]) == (step, step - 1)
    moments = 3 if links else 2
    assert seen == [*[1] * (2 * moments - 1), *[2] * (2 * moments), 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.pt", "previous.pt"]


def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_written_file(tmp_path, monkeypatch):
    path = tmp_path / "latest.pt"
    checkpoint.save({"step": 1}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"step": 2}, path, keep=tmp_path / "previous.pt")
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot write to .*choose another folder"):
        fit(tmp_path / "file" / "run")


def test_learning_rate_is_a_function_of_the_step():
    config = train.TrainConfig(steps=100, rate=1.0, warmup=10, schedule="cosine")
    rates = [train.learning_rate(i, config) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    assert all(b <= a for a, b in pairwise(rates[10:]))
    assert train.learning_rate(99, train.TrainConfig(rate=1e-3)) == 1e-3


def test_normalisation_is_measured_on_the_training_fields_and_kept_in_the_checkpoint(tmp_path):
    version = replace(VERSION, normalisation="measured")
    network, _ = fit(tmp_path, version=version)
    fields = train.worlds.get("plane").fields(24, generator=data.generator(0, "train"))
    assert float(network.y_mean) == pytest.approx(float(fields.mean()), abs=1e-5)
    assert float(network.y_std) == pytest.approx(float(fields.std()), rel=1e-3)
    loaded = train.restore(model.build(version), tmp_path / "best.pt")
    assert torch.equal(loaded.y_mean, network.y_mean) and torch.equal(loaded.y_high, network.y_high)


def test_bf16_autocast_trains():
    _, history = fit(config=replace(CONFIG, precision="bf16"))
    assert history["loss"][-1] < history["loss"][0]


SWITCHES = {
    "gradient": {"penalty": "gradient"},
    "laplacian": {"penalty": "laplacian", "penalty_patch": 4},
    "tv": {"penalty": "tv", "penalty_weight": 0.5},
    "frequency": {"penalty": "frequency"},
    "ot": {"coupling": "ot"},
    "reflow": {"coupling": "reflow", "reflow_steps": 2},
    "restarts": {"schedule": "restarts"},
    "step": {"schedule": "step"},
    "plateau": {"schedule": "plateau", "plateau": 1, "rate": 0.3, "clip": 0.0, "validate_every": 2},
    "muon": {"optimiser": "muon"},
    "best": {"answer": "best", "rate": 0.1, "clip": 0.0, "average": 0.0},
    "best of the start": {"answer": "best", "rate": 3.0, "warmup": 0, "clip": 0.0, "average": 0.0},
    "flips": {"augment": "flips"},
    "turns": {"augment": "turns"},
    "shifts": {"augment": "shifts"},
    "float64": {"precision": "float64"},
    "all": {"penalty": "tv", "coupling": "reflow", "schedule": "plateau", "plateau": 1, "validate_every": 5, "augment": "turns"},
}


@functools.cache
def plain_weights():
    return fit(config=replace(CONFIG, steps=16))[0]


def stopped_at(folder, config, step):
    """A training that ends without notice after this step: what is not in a checkpoint is lost."""
    network = model.build(VERSION, generator=data.generator(0, "init"))
    folder.mkdir(exist_ok=True)
    run = train.Run(network, train.worlds.get("plane"), config, torch.device("cpu"), folder)
    while run.step < step:
        run.advance()
        if run.step % config.validate_every == 0:
            run.report()
        if run.step % config.checkpoint_every == 0:
            run.save()


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_resumes_to_the_same_bits(tmp_path, name):
    config = replace(CONFIG, **{"steps": 16, "validate_every": 4, "checkpoint_every": 5, **SWITCHES[name]})
    whole, history = fit(config=config)
    assert not same_weights(whole, plain_weights())
    for step in (7, 12):  # before and after the middle, where a reflow freezes its model
        stopped_at(tmp_path / str(step), config, step)
        continued, its_history = fit(tmp_path / str(step), config)
        assert same_weights(whole, continued) and without_clock(history) == without_clock(its_history)


def test_a_checkpoint_from_before_a_switch_continues_at_its_default(tmp_path):
    whole, history = fit()
    stopped_at(tmp_path, CONFIG, 33)
    state = checkpoint.load(tmp_path / "latest.pt")
    for name in ("objective", "penalty", "lowered"):
        del state[name]
    for name in ("penalty", "coupling", "augment", "cycles"):
        del state["settings"][name]
    del state["batches"]["moving"]
    checkpoint.save(state, tmp_path / "latest.pt")
    with pytest.raises(checkpoint.CheckpointError, match=r"other settings \(coupling: independent there, ot now\)"):
        fit(tmp_path, replace(CONFIG, coupling="ot"))
    continued, its_history = fit(tmp_path)
    assert same_weights(whole, continued) and without_clock(history) == without_clock(its_history)


def test_a_penalty_is_counted_apart_and_leaves_the_draws_of_the_flow_loss_alone():
    """With weight 0 the flow's losses are those of a training without a penalty; without dropout, whose stream both calls share."""
    calm = replace(VERSION, dropout=0.0)
    plain, history = fit(version=calm)
    weightless, with_penalty = fit(config=replace(CONFIG, penalty="gradient", penalty_weight=0.0), version=calm)
    assert "penalty" not in history and len(with_penalty["penalty"]) == 3 and min(with_penalty["penalty"]) > 0
    assert same_weights(plain, weightless) and history["loss"] == with_penalty["loss"]


@pytest.mark.parametrize("kind", ["gradient", "laplacian", "tv"])
def test_a_smoothness_penalty_makes_the_estimate_smoother(kind):
    version = replace(VERSION, head="residual", prediction="data", dropout=0.0)
    config = replace(CONFIG, steps=40, penalty=kind, average=0.0)
    free, heavy = (fit(config=replace(config, penalty_weight=weight), version=version)[1]["penalty"][-1] for weight in (0.0, 30.0))
    assert heavy < 0.7 * free


def test_a_plateau_lowers_the_rate_when_the_validation_stands_still():
    stuck = replace(CONFIG, rate=1e-12, warmup=0, schedule="plateau", plateau=2, steps=120, average=0.0)
    network = model.build(VERSION, generator=data.generator(0, "init"))
    run = train.Run(network, train.worlds.get("plane"), stuck, torch.device("cpu"), None)
    run.validate = iter([1.0, 0.9, 0.9, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9]).__next__
    for _ in range(9):
        run.advance(), run.report()
    assert [rate / 1e-12 for rate in run.history["rate"]] == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_reflow_freezes_the_answering_weights_in_the_middle_and_validates_on_its_pairs():
    config = replace(CONFIG, coupling="reflow", reflow_steps=2, steps=20)
    network = model.build(VERSION, generator=data.generator(0, "init"))
    run = train.Run(network, train.worlds.get("plane"), config, torch.device("cpu"), None)
    for _ in range(10):
        run.advance()
    assert run.objective.teacher is None
    run.report()
    answering = {k: v.clone() for k, v in run.average.module.state_dict().items()}
    run.advance()
    teacher = run.objective.teacher
    assert all(torch.equal(v, answering[k]) for k, v in teacher.state_dict().items()) and not teacher.training
    assert run.best == float("inf") and not any(p.requires_grad for p in teacher.parameters())
    independent = flow.loss(run.average.module, run.validation, data.generator(0, "validation noise")).item()
    assert run.validate() != pytest.approx(independent, rel=1e-3)


def test_float64_trains_in_double_on_the_draws_of_float32():
    """The same noise, so the two stay together for a few steps, as far as single precision goes."""
    config = replace(CONFIG, steps=5, validate_every=5)
    single, one = fit(config=config, version=replace(VERSION, dropout=0.0))
    double, two = fit(config=replace(config, precision="float64"), version=replace(VERSION, dropout=0.0))
    assert double.enter.weight.dtype == torch.float64 and two["loss"][0] == pytest.approx(one["loss"][0], rel=1e-5)
    assert two["loss"][0] != one["loss"][0]
    batch = data.observe(train.worlds.get("plane").fields(2, generator=data.generator(1, "test")), 8)
    answers = [flow.sample(network, batch, data.generator(0, "samples"), 2) for network in (single, double)]
    assert answers[1].dtype == torch.float64
    torch.testing.assert_close(answers[0].double(), answers[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "gradients"}, r"unknown penalty 'gradients'; known: none, gradient, .*; did you mean 'gradient'\?"),
        ({"coupling": "reflw"}, r"unknown coupling 'reflw'; known: independent, ot, reflow; did you mean 'reflow'\?"),
        ({"answer": "first"}, r"unknown answer 'first'; known: last, best"),
        ({"optimiser": "moon"}, r"unknown optimiser 'moon'; known: adamw, muon; did you mean 'muon'\?"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin'.*did you mean 'cosine'\?"),
        ({"augment": "turn"}, r"unknown augment 'turn'.*did you mean 'turns'\?"),
        ({"precision": "float16"}, r"unknown precision 'float16'; known: float32, float64, bf16"),
        ({"penalty_weight": -1.0}, "penalty_weight is -1.0; give at least 0"),
        ({"penalty_patch": 2}, "penalty_patch is 2; give at least 3"),
        ({"cycles": 0}, "cycles is 0; give at least 1"),
        ({"plateau": 0}, "plateau is 0; give at least 1"),
    ],
)
def test_settings_name_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        train.TrainConfig(**settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_loop_never_waits_for_the_gpu():
    network = model.build(VERSION)
    run = train.Run(network, train.worlds.get("plane"), CONFIG, torch.device("cuda"), None)
    run.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.step == 4


def test_flow_loss_of_a_trained_model_is_below_that_of_an_untrained_one():
    """With the residual head: as described, the query's noise does not reach the output and the loss stays above its variance, 1."""
    version = replace(VERSION, head="residual")
    trained, _ = fit(config=replace(CONFIG, steps=300, average=0.0, clip=0.0), version=version)
    untrained = model.build(version, generator=data.generator(0, "init"))
    batch = data.observe(train.worlds.get("plane").fields(8, generator=data.generator(1, "test")), 51)
    loss = lambda m: flow.loss(m.eval(), batch, data.generator(0, "flow")).item()  # noqa: E731
    assert loss(trained) < 0.8 * loss(untrained)

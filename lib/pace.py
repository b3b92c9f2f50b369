"""How long an arm of the investigation, a single field and the training of a flow take, and seeds as one stack; parts of `make bench`.

The arm is V2 as described: 1,600 training steps of 32 fields, then 64 held-out fields asked at all 1,024 sites. Two run side by side, a
process and a thread each, so on two cores an arm costs half of what each of them takes; and one runs by itself, with both threads, which
is how long a person waits for one. Both parts are timed short and scaled up.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from lib import arms, bench, cost, data, flow, memory, model, ode, study, trained, v5, worlds
from lib.data import Batch

STEPS, FIELDS = 1600, 64  # of the whole arm
SIDE_BY_SIDE = 2
PAST = {"separable": 500, "plane": 500, "air": 240}  # fields; single ones are answered by components, by waves, by processes


def arm(device: str = "cpu", steps: int = 120, fields: int = 8, rounds: int = 7, seeds: int = 3) -> dict:
    """seconds_<n>: of an arm asked by n Heun steps, half of what two side by side take; alone_<n>: of one with all their threads.

    stacked: time of a stack of seeds over one after another.
    """
    asked = {"solver": "heun", "solver_steps": 10, "test_fields": fields}
    design = study.design("v2-transformer", "separable", range(SIDE_BY_SIDE), {"arm": {}}, steps=steps, batch=32, **asked)
    training, call = _timed(study.run(design, device=device, jobs=SIDE_BY_SIDE, show=False), steps)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(SIDE_BY_SIDE)
        alone, its_call = _timed(pd.DataFrame([arms.run(design[0][1], device=device)]), steps)  # a study gives each arm one thread
    finally:
        torch.set_num_threads(threads)
    found = {"training_seconds": training / SIDE_BY_SIDE}
    for n in (10, 50):
        found[f"seconds_{n}"] = (training + FIELDS * call * ode.evaluations("heun", n)) / SIDE_BY_SIDE
        found[f"alone_{n}"] = alone + FIELDS * its_call * ode.evaluations("heun", n)
    calls = {name: make(device, seeds) for name, make in {"stack": stacked, "one after another": separate}.items()}
    times = bench.compare(calls, rounds, device)
    return found | bench.ratio("stacked", times["stack"], times["one after another"]) | {"seeds": seeds}


def _timed(rows: pd.DataFrame, steps: int) -> tuple[float, float]:
    """Seconds that one of these arms would train, and seconds per field and evaluation."""
    return STEPS * float((rows.seconds_training / steps).mean()), float((rows.ms_per_field / rows.evaluations).mean()) / 1e3


class Loss(nn.Module):
    """Mean squared answer of a velocity network, a stand-in for the loss with the same cost."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, y_t: Tensor, t: Tensor) -> Tensor:
        return self.network.velocity(y_t, t, batch.s_qry, self.network.encode(batch)).square().mean()


def problem(device: str, seeds: int, fields: int = 32, **switches) -> tuple[list[Loss], tuple[Batch, Tensor, Tensor]]:
    """V2 without dropout from so many seeds, and what each is asked: a batch of training with its noise and times."""
    losses = [Loss(model.build("v2-transformer", 1, data.generator(k, "init"), dropout=0.0, **switches)).to(device) for k in range(seeds)]
    whole = data.observe(worlds.get("separable").fields(fields, generator=data.generator(0, "train")), 51)
    batch = Batch(whole.s_obs, whole.y_obs, whole.m_obs, whole.s_qry[:, :51], whole.y_qry[:, :51]).to(device)
    noise = data.generator(0, "noise")
    y_t, t = torch.randn(fields, 51, 1, generator=noise), torch.rand(fields, generator=noise)
    return losses, (batch, y_t.to(device), t.to(device))


def separate(device: str, seeds: int, **sizes) -> Callable[[], list[dict[str, Tensor]]]:
    """The gradients of every seed, one after another."""
    losses, asked = problem(device, seeds, **sizes)

    def gradients(loss: Loss) -> dict[str, Tensor]:
        weights = {name: weight for name, weight in loss.named_parameters() if weight.requires_grad}
        return dict(zip(weights, torch.autograd.grad(loss(*asked), list(weights.values()), allow_unused=True), strict=True))

    return lambda: [gradients(loss) for loss in losses]


def stacked(device: str, seeds: int, **sizes) -> Callable[[], dict[str, Tensor]]:
    """The same gradients from one call on stacked weights; attention alone goes seed by seed, which is faster than spelling it out."""
    losses, asked = problem(device, seeds, **sizes)
    weights, buffers = stack_module_state(losses)
    gradients = vmap(grad(lambda w, b: functional_call(losses[0], (w, b), asked)))

    def call() -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # torch says so of the attention
            return gradients(weights, buffers)

    return call


def field(device: str = "cpu", rounds: int = 15, past: int = 500) -> dict:
    """Milliseconds from 51 readings of one field to an answer at 1,024 sites: V5's mean on three worlds, and four steps of the white flow.

    joint_<sites>: one velocity of a network that reads all anew at every step over one of ours, which read once, of the same width.
    """
    calls, asked = {}, {}
    for name in PAST:
        world = worlds.get(name)
        prior = v5.learn(world.fields(min(past, PAST[name]), generator=data.generator(0, "train")))
        one = data.observe(world.fields(1, generator=data.generator(0, "test"), split="test"), 51)
        asked[name] = prior, one
        calls[f"{name}_ms"] = lambda prior=prior, one=one: v5.mean(prior, one)
    networks = {name: model.build(name, width=64, inner=64).eval().to(device) for name in ("v5-white", "fm-np")}
    one = cost.empty_field(32, 51, device)
    calls["white_ms"] = lambda: flow.sample(networks["v5-white"], one, data.generator(0, "samples", device), 4)
    found = {name: 1e3 * statistics.median(seconds) for name, seconds in bench.compare(calls, rounds).items()}
    for side in (32, 64):
        batch = cost.empty_field(side, 51, device)
        seconds = bench.compare({name: cost.velocity_call(network, batch) for name, network in networks.items()}, rounds, device)
        found |= bench.ratio(f"joint_{side**2}", seconds["fm-np"], seconds["v5-white"])
    return found


def wide(device: str = "cpu", rounds: int = 3, side: int = 1024) -> dict:
    """V5's mean and deviation on `air`, which takes longest, at side x side sites: seconds, and GB of the whole process at its highest.

    The whole process, PyTorch included: what an answer adds would fit into memory that learning has freed, so none is learned here either.
    """
    prior = trained.prior("air", PAST["air"])
    one = data.observe(worlds.get("air").fields(1, generator=data.generator(0, "test"), split="test"), 51)
    asked = Batch(one.s_obs, one.y_obs, one.m_obs, data.grid(side)[None], torch.zeros(1, side**2, 1))
    memory.highest(reset=True)
    seconds = bench.compare({"v5": lambda: v5.predict(prior, asked)}, rounds)["v5"]
    return {"seconds": statistics.median(seconds), "gb": memory.highest() / 1e9}


def white(device: str = "cpu", steps: int = 1000, fields: int = 20_000, held_out: int = 64) -> dict:
    """Training of a flow from white noise by Muon on separable, and what it is then worth: seconds, PSNR in dB of one Euler step."""
    how = {"optimiser": "muon", "rate": 4e-3, "schedule": "cosine", "warmup": min(50, steps), "decay": 1e-4, "clip": 1.0, "average": 0.99}
    how |= {"fields": fields, "steps": steps, "batch": 32, "queries": 64, "sensors": "step", "positions": "step", "validate_every": steps}
    row = arms.run(arms.arm("v5-white", "separable", **how, test_fields=held_out, solver="euler", solver_steps=1), device=device)
    return {"seconds": row["seconds_training"], "psnr": row["psnr"]}


SECTIONS = {"arm": arm, "field": field, "wide": wide, "white": white}

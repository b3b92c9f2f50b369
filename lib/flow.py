"""Conditional flow matching on scattered sites: path, loss, samples.

    y_t = (1 - t) y_0 + t y_1      u = y_1 - y_0      loss = E |v(y_t, t) - u|^2      y_0 ~ N(0, 1), t ~ U(0, 1)
Lipman et al., Flow Matching for Generative Modeling (2023), with the straight path of Liu et al., Flow Straight and Fast (2022), eq. 1;
paths.py holds that path and another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from lib import ode, paths, shares
from lib.data import Batch, Prediction
from lib.model import said

Couple = Callable[[Batch, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


path = partial(paths.point, "linear")  # (y_0, y_1, t) -> y_t, u


@dataclass(frozen=True)
class Look:
    """What a network says at random points of its paths, in its own units: `said` a velocity or the data, `known` weighs the queries."""

    batch: Batch
    y_0: Float[Tensor, "B M C"]
    y_1: Float[Tensor, "B M C"]
    known: Float[Tensor, "B M C"]
    t: Float[Tensor, "B"]
    y_t: Float[Tensor, "B M C"]
    u: Float[Tensor, "B M C"]
    said: Float[Tensor, "B M C"]


def loss(model, batch: Batch, generator: torch.Generator, couple: Couple | None = None) -> Float[Tensor, ""]:
    """Mean squared error of the model's velocity (or data, if it predicts data) at random times; masked queries do not count.

    couple(batch, y_0, y_1, known) -> (y_0, y_1) says which noise belongs to which data; None leaves them independent.
    """
    return error(model, look(model, batch, generator, couple))


def look(model, batch: Batch, generator: torch.Generator, couple: Couple | None = None) -> Look:
    """Ask the network at random times of paths that start at random noise."""
    batch, y_0, y_1, known, t = _pairs(model, batch, generator)
    if couple is not None:
        y_0, y_1 = couple(batch, y_0, y_1, known)
    return look_at(model, batch, y_0, y_1, known, t)


def look_at(model, batch: Batch, y_0: Tensor, y_1: Tensor, known: Tensor, t: Tensor) -> Look:
    """Ask the network at given times of given paths."""
    y_t, u = paths.point(model.config.path, y_0, y_1, t)
    ask = lambda y_t, t, batch: said(model, y_t, t, batch.s_qry, model.encode(batch))  # noqa: E731
    alone = getattr(model.config, "source", "white") == "posterior"  # whose draws belong to the batch as it is
    return Look(batch, y_0, y_1, known, t, y_t, u, ask(y_t, t, batch) if alone else shares.call(ask, model, y_t, t, batch))


def error(model, seen: Look) -> Float[Tensor, ""]:
    """The loss at these points."""
    target = seen.y_1 if model.config.prediction == "data" else seen.u
    return (seen.known * (seen.said - target).square()).sum() / seen.known.sum().clamp(min=1)


def loss_at(model, batch: Batch, y_0: Tensor, y_1: Tensor, known: Tensor, t: Tensor) -> Float[Tensor, ""]:
    """The loss for given noise and times; `known` (B, M, C) weighs the queries."""
    return error(model, look_at(model, batch, y_0, y_1, known, t))


def estimate(model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One step from a random point of the path to the data, y_t + (1 - t) v, beside the data and which of it is known; network's units."""
    seen = look(model, batch, generator)
    return estimated(model, seen), seen.y_1, seen.known


def estimated(model, seen: Look) -> Float[Tensor, "B M C"]:
    """The data that these answers point to."""
    out = seen.said.to(seen.y_1.dtype)
    return out if model.config.prediction == "data" else paths.data(model.config.path, out, seen.y_t, seen.t)


def _pairs(model, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor, Tensor, Tensor]:
    """The batch in the model's precision, noise, data, which of it is known, and times.

    Draws have the batch's own precision, so that a float64 model sees the noise of the float32 one.
    """
    drawn = {"generator": generator, "device": batch.y_qry.device, "dtype": batch.y_qry.dtype}
    batch = _in_precision_of(model, batch)
    y_1, known = _targets(model, batch)
    y_0 = _noise(model, batch, generator, drawn["dtype"])
    t = torch.rand(len(y_1), **drawn).to(y_1.dtype)
    return batch, y_0, y_1, known, t


def _noise(model, batch: Batch, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "B M C"]:
    """What a path starts from, in the network's units: white noise, or what the model says that its paths start from."""
    if hasattr(model, "noise"):
        return model.noise(batch, generator)
    s = batch.s_qry
    return torch.randn(*s.shape[:2], model.channels, generator=generator, device=s.device, dtype=dtype).to(s.dtype)


def _in_precision_of(model, batch: Batch) -> Batch:
    dtype = model.normalise(batch.y_qry[:0]).dtype  # the finer of the batch's and the model's
    parts = (getattr(batch, f.name) for f in fields(batch))
    return Batch(*(part.to(dtype) if part.is_floating_point() else part for part in parts))


def _targets(model, batch: Batch) -> tuple[Tensor, Tensor]:
    y_1 = model.normalise(batch.y_qry)
    known = torch.isfinite(y_1)
    return torch.where(known, y_1, 0.0), known.to(y_1.dtype)


@torch.no_grad()
def sample(
    model,
    batch: Batch,
    generator: torch.Generator,
    steps: int = 1,
    method: str = "euler",
    samples: int = 1,
    feedback: bool = True,
    callback: Callable[[float, Tensor], None] | None = None,
    start: Float[Tensor, "B M C"] | None = None,
) -> Float[Tensor, "K B M C"]:
    """Draw `samples` fields per batch entry at the queries, in data units.

    feedback False is the sampler that forgets: the model sees fresh noise at every call instead of the state y_t.
    callback(t, y_t) sees the path of each draw, in data units. start is the noise y_0 of the (first) draw, for paired experiments.
    ValueError for an unknown solver, steps < 1 or samples < 1.
    """
    if samples < 1:
        raise ValueError(f"at least one sample is needed, got samples={samples}")
    training = model.training
    model.eval()
    drawn = batch.s_qry.dtype
    batch = _in_precision_of(model, batch)
    noise = lambda: _noise(model, batch, generator, drawn)  # noqa: E731
    seen = (lambda t, y: callback(t, model.restore(y))) if callback else None
    try:
        memory = model.encode(batch)
        starts = [start] + [None] * (samples - 1)
        ends = [
            carry(model, batch, memory, noise() if y_0 is None else y_0, steps, method, None if feedback else noise, seen) for y_0 in starts
        ]
    finally:
        model.train(training)
    return torch.stack([model.restore(y_1) for y_1 in ends])


def carry(
    model,
    batch: Batch,
    memory,
    y_0: Float[Tensor, "B M C"],
    steps: int,
    method: str,
    forget: Callable[[], Tensor] | None = None,
    callback: Callable[[float, Tensor], None] | None = None,
) -> Float[Tensor, "B M C"]:
    """Where the model's velocity carries y_0 by t = 1, in its own units; `forget` draws what the model sees instead of the state."""

    def velocity(t: float, y: Tensor) -> Tensor:
        time = torch.full((len(y),), t, device=y.device, dtype=y.dtype)
        return shares.call(model.velocity, model, forget() if forget else y, time, batch.s_qry, memory)

    return ode.integrate(velocity, y_0, ode.uniform(steps), method, callback)


def predict(model, batch: Batch, generator: torch.Generator, steps: int = 50, method: str = "heun", samples: int = 8) -> Prediction:
    """Mean and standard deviation of `samples` draws, called like a baseline so that one loop judges everything.

    With K draws the mean carries 10 log10(1 + 1/K) dB of sampling noise: 0.51 dB at 8.
    """
    draws = sample(model, batch, generator, steps, method, samples)
    std = draws.std(0) if samples > 1 else None
    return Prediction(draws.mean(0), std, lambda count, g: sample(model, batch, g, steps, method, count))

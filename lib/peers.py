"""The neural-process peer: ConvCNP, trained and asked on the lab's own batches; its network is that of neuralprocesses (extra `peers`).

    readings -> density and values on a grid (set convolution) -> U-Net -> mean and deviation at any site, trained by their likelihood
Gordon et al., Convolutional Conditional Neural Processes (2020), section 4, with a U-Net.
488,420 weights for one channel, 490,152 for three.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import checkpoint, data, worlds
from lib.checkpoint import CheckpointError

CHANNELS = (32, 32, 64, 64)  # of the U-Net's levels, each half as fine as the one before
FINER = 1.5  # points of the network's grid per point of the field's
MARGIN = 0.1  # of the network's grid about the domain
QUERIES = 256  # supervised sites per field and step


@dataclass(frozen=True)
class ConvCNP:
    """A trained network, the scaling of its values, and the losses on the way (nats per value, less the log of the scaling)."""

    network: nn.Module
    scaling: data.Scaling
    history: dict = field(default_factory=dict)


def train_convcnp(
    world,
    seconds: float | None = None,
    steps: int | None = None,
    fields: int = 500,
    readings: int | tuple[int, int] = (13, 512),
    noise: float | tuple[float, float] = 0.0,
    seed: int = 0,
    folder: Path | str | None = None,
    batch: int = 16,
    rate: float = 1e-3,
    device="cpu",
    report: int = 50,
) -> ConvCNP:
    """Train by the negative log-likelihood of unread sites until `seconds` or `steps` are over, whichever comes first.

    Two numbers for readings or noise draw one between them, readings for every field and step, noise for every step. The rate falls to
    zero along a cosine. Steps alone give the same weights again; seconds depend on the machine. With a folder the result is kept in its
    convcnp.pt and returned from there the next time. ValueError: neither limit. CheckpointError: the folder holds another training.
    """
    if seconds is None and steps is None:
        raise ValueError("neither seconds nor steps is given; say how long to train")
    world = worlds.get(world) if isinstance(world, str) else world
    settings = {
        "world": world.name, "seconds": seconds, "steps": steps, "fields": fields, "readings": _pair(readings), "noise": _pair(noise),
        "seed": seed, "batch": batch, "rate": rate,
    }  # fmt: skip
    y = world.fields(fields, generator=data.generator(seed, "train"), split="train")
    model = ConvCNP(build_convcnp(world, seed).to(device), data.measure(y))
    path = None if folder is None else Path(folder) / "convcnp.pt"
    if path is not None and path.exists():
        return _kept(model, path, settings)
    stream = data.batches(y, batch, readings, QUERIES, "step", "step", generator=data.generator(seed, "batches", device), device=device)
    model.history.update(_descend(model, stream, _pair(noise), seconds, steps, rate, data.generator(seed, "noise", device), report))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save({"settings": settings, "model": model.network.state_dict(), "history": model.history}, path)
    return model


def predict(model: ConvCNP, batch: data.Batch, fields: int = 32) -> data.Prediction:
    """Mean and deviation at every query, each site on its own: there are no coherent samples. `fields` are answered at a time."""
    model.network.eval()
    with torch.no_grad():
        parts = [_answer(model, batch[i : i + fields]) for i in range(0, len(batch.s_qry), fields)]
    mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
    scale = model.scaling.std.to(mean)
    return data.Prediction(model.scaling.restore(mean), variance.clamp(min=0).sqrt() * scale)


def build_convcnp(world, seed: int = 0) -> nn.Module:
    """An untrained network whose grid is FINER times as fine as the world's; weights follow from the seed alone."""
    nps = _package()
    density = math.ceil(FINER * (max(data.shape_of(world.resolution)) - 1) / 2)  # points per unit; the domain is 2 wide
    site = torch.zeros(1, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.generator(seed, "init").initial_seed())
        network = nps.construct_convgnp(
            dim_x=2, dim_y=world.channels, likelihood="het", points_per_unit=density, margin=MARGIN, unet_channels=CHANNELS
        )
        network(site, torch.zeros(1, world.channels, 2), site)  # some layers take their size from the first values they see
    return network


def _package():
    """neuralprocesses with its torch backend; ImportError says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names old places of numpy
            import neuralprocesses.torch as nps
    except ImportError as error:
        raise ImportError(f"ConvCNP needs the package neuralprocesses ({error}); install it: pip install -e '.[peers]'") from None
    return nps


def _descend(
    model: ConvCNP, stream: data.Stream, noise: Sequence[float], seconds: float | None, steps: int | None, rate: float,
    generator: torch.Generator, report: int,
) -> dict:  # fmt: skip
    """Adam with a cosine over whichever limit is nearer; the history has the mean loss of every `report` steps."""
    nps, history, start, step, total = _package(), {"step": [], "loss": []}, time.perf_counter(), 0, 0.0
    optimiser = torch.optim.Adam(model.network.parameters(), rate)
    model.network.train()
    while (done := max(step / (steps or math.inf), (time.perf_counter() - start) / (seconds or math.inf))) < 1:
        optimiser.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
        batch = _noisy(next(stream), noise, generator)
        target = model.scaling.normalise(batch.y_qry).mT.contiguous()
        loss = -nps.loglik(model.network, *_context(model, batch), batch.s_qry.mT.contiguous(), target, normalise=True).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step, total = step + 1, total + float(loss.detach())
        if step % report == 0:
            history["step"].append(step), history["loss"].append(total / report)
            total = 0.0
    return {**history, "steps": step, "seconds": time.perf_counter() - start}


def _noisy(batch: data.Batch, noise: Sequence[float], generator: torch.Generator) -> data.Batch:
    """The batch with noise of one level between the two on its readings, as data.observe measures levels."""
    drawn = {"generator": generator, "device": batch.y_obs.device, "dtype": batch.y_obs.dtype}
    level = noise[0] + (noise[1] - noise[0]) * torch.rand((), **drawn)
    y_obs = batch.y_obs + 0.5 * level * torch.randn(batch.y_obs.shape, **drawn)
    return data.Batch(batch.s_obs, y_obs, batch.m_obs, batch.s_qry, batch.y_qry)


def _answer(model: ConvCNP, batch: data.Batch) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, M, C) in the network's units."""
    said = model.network(*_context(model, batch), batch.s_qry.to(model.scaling.mean.dtype).mT.contiguous())
    return tuple(part.to(batch.y_qry.dtype).mT for part in (said.mean, said.var))


def _context(model: ConvCNP, batch: data.Batch) -> tuple[Tensor, object]:
    """Readings as the package takes them: sites (B, 2, N), values (B, C, N) with a mask.

    Two masked sites at the corners of the domain carry nothing, but hold the network's grid, which spans the sites it is given: so an
    answer does not depend on what else is asked, and a field without readings has one too.
    """
    nps, dtype = _package(), model.scaling.mean.dtype
    corners = batch.s_obs.new_tensor([[-1.0, -1.0], [1.0, 1.0]]).expand(len(batch.s_obs), -1, -1)
    y = model.scaling.normalise(batch.y_obs).where(batch.m_obs[..., None], 0)
    y = torch.cat([y, y.new_zeros(len(y), 2, y.shape[-1])], 1)
    mask = torch.cat([batch.m_obs, batch.m_obs.new_zeros(len(y), 2)], 1)[:, None]
    s = torch.cat([batch.s_obs, corners], 1)
    return s.to(dtype).mT.contiguous(), nps.Masked(y.to(dtype).mT.contiguous(), mask.to(dtype))


def _kept(model: ConvCNP, path: Path, settings: dict) -> ConvCNP:
    """The training that the folder holds, if it is this one."""
    state = checkpoint.load(path)
    if state["settings"] != settings:
        its = ", ".join(f"{k}: {state['settings'].get(k)} there, {v} now" for k, v in settings.items() if state["settings"].get(k) != v)
        raise CheckpointError(f"{path} holds a training with other settings ({its}); choose another folder, or delete it")
    model.network.load_state_dict(state["model"])
    model.history.update(state["history"])
    return model


def _pair(given) -> list:
    return list(given) if isinstance(given, Sequence) else [given, given]

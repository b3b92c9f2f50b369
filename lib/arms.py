"""An arm of an experiment: one version with some switches on one world with one seed, trained, judged, and kept as a row of a table.

    arm("v2-transformer", "plane", seed=0, head="residual", positions="step", steps=400, solver_steps=10)

Switches are fields of model.ModelConfig, train.TrainConfig or Judging, told apart by their names. An arm's id is a hash of its version,
its world and the settings that differ from their defaults: a changed switch is another arm, a finished one is read back from its folder
instead of trained again, and a switch added later, with a default that changes nothing, leaves kept results valid.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from lib import data, flow, machine, metrics, model, ode, shares, train, worlds


@dataclass(frozen=True)
class Judging:
    """How a trained model is asked: 64 held-out fields, all sites, one Heun sample of 50 steps, as the documents do it."""

    test_fields: int = 64
    test_readings: int = 51
    test_noise: float = 0.0
    solver: str = "heun"
    solver_steps: int = 50
    samples: int = 1
    feedback: bool = True  # False: the sampler that forgets its state
    chunk: int = 16  # fields asked together; bounds memory


@dataclass(frozen=True)
class Arm:
    """Everything that decides an arm's result."""

    version: str
    world: str
    model: model.ModelConfig
    train: train.TrainConfig
    judge: Judging

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of version, world and every setting that changes the result and differs from its default."""
        settings = {"version": self.version, "world": self.world}
        for part in (self.model, self.train, self.judge):
            for f in fields(part):
                value = _plain(getattr(part, f.name), f.default)
                if f.name not in SAVING and value != _plain(f.default, f.default):
                    settings[f.name] = value
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


PARTS = {"train": train.TrainConfig, "judge": Judging}
SAVING = ("checkpoint_every", "keep_every")  # how often something is saved changes no result


def _plain(value, default):
    """A setting in one spelling (5 and 5.0 are one value where the default is a float), as JSON keeps it."""
    if isinstance(default, bool | float) and isinstance(value, bool | int | float):
        value = type(default)(value)
    return json.loads(json.dumps(value))


def arm(version: str, world: str, seed: int = 0, **switches) -> Arm:
    """An arm from a version and switches; ValueError for an unknown version, world, switch or value."""
    worlds.get(world)
    mine = {part: {k: v for k, v in switches.items() if k in {f.name for f in fields(config)}} for part, config in PARTS.items()}
    rest = {k: v for k, v in switches.items() if not any(k in found for found in mine.values())}
    config = model.configure(version, **rest)
    return Arm(version, world, config, train.TrainConfig(seed=seed, **mine["train"]), Judging(**mine["judge"]))


def of(row: Mapping) -> Arm:
    """The arm of a kept row (the flat columns of `settings`, scores or none); a setting it lacks, or has as NaN, has its default."""
    try:
        version, world = row["version"], row["world"]
    except KeyError as missing:
        raise ValueError(f"a row needs {missing}, version and world name its arm; given: {', '.join(map(str, row))}") from None
    said = {name: v for name, v in row.items() if not (isinstance(v, float) and v != v)}  # tables say NaN for what a row lacks
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}  # JSON knows no tuples
    parts = [model.ModelConfig, train.TrainConfig, Judging]
    return Arm(version, world, *(part(**{f.name: given[f.name] for f in fields(part) if f.name in given}) for part in parts))


def rehash(row: Mapping) -> str:
    """The id of a kept row by its settings, whatever id it was kept under."""
    return of(row).id


def fit(arm: Arm, folder: Path | str | None = None, device="cpu", show: bool | None = None):
    """The arm's trained model and its history; with a folder, training continues from what lies there."""
    world = worlds.get(arm.world)
    network = model.build(arm.model, world.channels, data.generator(arm.train.seed, "init"))
    place = Path(folder) / "arms" / arm.id if folder else None
    return network, train.fit(network, world, arm.train, place, device, show)


def trained(arm: Arm, folder: Path | str) -> bool:
    """Whether its weights lie in the folder, so that `fit` loads them."""
    return (Path(folder) / "arms" / arm.id / "latest.pt").exists()


def run(arm: Arm, folder: Path | str | None = None, device="cpu", show: bool | None = None) -> dict:
    """Train and judge an arm; its row, with settings, scores, cost and provenance. With a folder, a finished arm is only read."""
    place = Path(folder) / "arms" / arm.id / "row.json" if folder else None
    if place is not None and place.exists():
        return json.loads(place.read_text())
    network, history = fit(arm, folder, device, show)
    began = time.perf_counter()
    row = {**settings(arm), **judge(network, arm, device), "seconds_training": history["seconds"], "loss": history["loss"][-1]}
    row |= {"seconds": history["seconds"] + time.perf_counter() - began, **provenance(device)}
    if place is not None:
        temporary = place.with_suffix(".tmp")
        temporary.write_text(json.dumps(row))
        os.replace(temporary, place)
    return row


def settings(arm: Arm) -> dict:
    """The arm as flat columns of a table."""
    return {"id": arm.id, "version": arm.version, "world": arm.world, **asdict(arm.model), **asdict(arm.train), **asdict(arm.judge)}


def defaults() -> dict:
    """Every setting that a row may lack, at its default."""
    return {f.name: f.default for part in (model.ModelConfig, train.TrainConfig, Judging) for f in fields(part)}


def provenance(device="cpu") -> dict:
    """Where and when a row is computed: device, processor, graphics card, threads, torch, commit of this checkout, date (UTC)."""
    here, on_gpu = machine.hardware(), torch.device(device).type == "cuda"
    where = {"device": str(device), "cpu": here["cpu"], "gpu": here["gpu"] if on_gpu else None, "threads": torch.get_num_threads()}
    return {**where, "torch": here["torch"], "commit": _commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}


@functools.cache
def _commit() -> str | None:
    return machine.commit(Path(__file__).parents[1])  # asked once per process: git takes longer than a small arm


def test_batch(arm: Arm, device="cpu") -> data.Batch:
    """Held-out fields, sensors and noise: drawn once per seed and count, the same for every arm and every method."""
    seed, judge = arm.train.seed, arm.judge
    held_out = worlds.get(arm.world).fields(judge.test_fields, generator=data.generator(seed, "test"), split="test")
    return data.observe(held_out, judge.test_readings, arm.train.layout, data.generator(seed, "sensors"), judge.test_noise).to(device)


def predict(network, batch: data.Batch, arm: Arm, generator: torch.Generator | None = None) -> torch.Tensor:
    """Samples (K, B, M, C) of a batch by the arm's sampler, a few fields at a time."""
    judge = arm.judge
    generator = generator or data.generator(arm.train.seed, "samples", batch.s_qry.device)
    parts = range(0, len(batch.s_qry), judge.chunk)
    draw = lambda part: flow.sample(network, part, generator, judge.solver_steps, judge.solver, judge.samples, judge.feedback)  # noqa: E731
    with shares.between(torch.get_num_threads() if batch.s_qry.device.type == "cpu" else 1):
        return torch.cat([draw(batch[i : i + judge.chunk]) for i in parts], 1)


def judge(network, arm: Arm, device="cpu") -> dict:
    """Scores on held-out fields, each the mean over fields with its 95 % bootstrap interval, in dB where the name says psnr.

    psnr: one sample, all sites at once · psnr_best: the mean of all samples · psnr_alone: only as many sites asked as in training
    (the trained ones where they are the same for all fields) · psnr_seen: training fields at their own trained sites, NaN if redrawn.
    """
    batch, world = test_batch(arm, device), worlds.get(arm.world)
    began = time.perf_counter()
    draws = predict(network, batch, arm)
    seconds = time.perf_counter() - began
    scores = metrics.score(draws[0], batch, world)
    row = {f"{name}": float(value.nanmean()) for name, value in scores.items()}
    summary = metrics.summary(scores)["psnr"]
    row |= {"psnr_low": summary["low"], "psnr_high": summary["high"], "psnr_median": summary["median"]}
    row["psnr_best"] = float(metrics.score(draws.mean(0), batch, world)["psnr"].mean())
    row["psnr_alone"], row["psnr_seen"] = _apart(network, arm, batch, world, device)
    row["psnr_fields"] = [round(float(v), 4) for v in scores["psnr"]]
    row["speckle_fields"] = [round(float(v), 5) for v in scores.get("speckle", ())]
    cost = ode.evaluations(arm.judge.solver, arm.judge.solver_steps)
    return row | {
        "parameters": model.parameters(network),
        "evaluations": None if cost is None else cost * (1 + arm.model.self_condition),  # of the network, which is then asked twice
        "ms_per_field": 1e3 * seconds / len(batch.s_qry) / arm.judge.samples,
    }


def trained_batch(arm: Arm, device="cpu") -> data.Batch:
    """The first training fields with the readings that were fixed for them, asked at all sites; ValueError where sensors are redrawn."""
    stream = _stream(arm, device)
    if "read" not in stream.fixed:
        raise ValueError(f"sensors are redrawn at every step ({arm.train.sensors!r}), so no readings belong to a training field")
    first = torch.arange(min(arm.judge.test_fields, len(stream.fields)), device=device)
    read = stream.fixed["read"]
    read = read[first] if len(read) > 1 else read.expand(len(first), -1)
    y = stream.values[first]
    known = torch.ones(read.shape, dtype=torch.bool, device=device)
    return data.Batch(stream.sites[read], _pick(y, read), known, stream.sites.expand(len(first), -1, -1), y)


def trained_sites(arm: Arm, device="cpu") -> torch.Tensor | None:
    """The supervised sites (1 or fields, M, 2) of the arm's training; None where they are redrawn at every step."""
    stream = _stream(arm, device)
    asked = stream.fixed.get("asked")
    return None if asked is None else stream.sites[asked]


def _stream(arm: Arm, device):
    t, world = arm.train, worlds.get(arm.world)
    pool = world.fields(t.fields, generator=data.generator(t.seed, "train"), split="train")
    stream = data.batches(
        pool, t.batch, t.readings, t.queries, t.sensors, t.positions, t.layout, t.noise, data.generator(t.seed, "batches", device), device
    )
    return stream


def _apart(network, arm: Arm, batch, world, device) -> tuple[float, float]:
    """PSNR on held-out fields asked as in training, and on training fields at the sites that were trained."""
    if arm.train.queries == "all":
        return float("nan"), float("nan")
    stream = _stream(arm, device)
    asked = stream.fixed.get("asked")
    count = len(batch.s_qry)
    if asked is not None and len(asked) == 1:  # the same sites for all fields: ask the held-out fields there
        sites = asked.expand(count, -1)
    else:
        keys = torch.rand(batch.s_qry.shape[:2], generator=data.generator(arm.train.seed, "alone")).to(device)
        sites = keys.masked_fill(~torch.isfinite(batch.y_qry).all(-1), -1).topk(arm.train.queries).indices
    alone = _psnr(network, arm, replace(batch, s_qry=_pick(batch.s_qry, sites), y_qry=_pick(batch.y_qry, sites)))
    if asked is None or "read" not in stream.fixed:
        return alone, float("nan")
    seen = trained_batch(arm, device)
    sites = asked[: len(seen.s_qry)].expand(len(seen.s_qry), -1)
    return alone, _psnr(network, arm, replace(seen, s_qry=_pick(seen.s_qry, sites), y_qry=_pick(seen.y_qry, sites)))


def _psnr(network, arm: Arm, batch) -> float:
    error = (predict(network, batch, arm)[0] - batch.y_qry).square().mean((1, 2))
    return float((-10 * torch.log10(error)).mean())


def _pick(y: torch.Tensor, sites: torch.Tensor) -> torch.Tensor:
    return y.gather(1, sites[..., None].expand(-1, -1, y.shape[-1]))

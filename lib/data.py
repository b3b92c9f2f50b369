"""What a method sees: readings, queries, and the batches that training draws from fields.

A field is a tensor (C, H, W) on a regular grid of [-1, 1]^2, NaN where there is nothing to measure (land in a sea-surface map).
A batch holds, for B fields, N readings (s_obs, y_obs) with a mask for padding and missing values, and M queries (s_qry, y_qry).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lib import augment as moves
from lib.layouts import COUNTS, LAYOUTS, Resolution, grid, shape_of, uniform, valid

__all__ = [
    "COUNTS",
    "LAYOUTS",
    "Batch",
    "Kept",
    "Prediction",
    "Resolution",
    "Scaling",
    "batches",
    "check",
    "generator",
    "grid",
    "measure",
    "observe",
    "readings",
    "shape_of",
    "valid",
]


@dataclass(frozen=True)
class Batch:
    """Readings and queries of B fields; y_qry is the truth, NaN where the field is masked."""

    s_obs: Float[Tensor, "B N 2"]
    y_obs: Float[Tensor, "B N C"]
    m_obs: Bool[Tensor, "B N"]
    s_qry: Float[Tensor, "B M 2"]
    y_qry: Float[Tensor, "B M C"]

    def to(self, device) -> Batch:
        """The same batch on another device."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def __getitem__(self, index: slice | Tensor) -> Batch:
        """Some of the fields: batch[2:5] and batch[indices] keep the batch axis."""
        return Batch(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class Prediction:
    """An answer at the queries: mean, standard deviation where the method has one, and a way to draw coherent samples.

    draw(K, generator) -> (K, B, M, C), or None for a method without samples.
    """

    mean: Float[Tensor, "B M C"]
    std: Float[Tensor, "B M C"] | None = None
    draw: Callable[[int, torch.Generator], Tensor] | None = None

    def samples(self, count: int, generator: torch.Generator) -> Float[Tensor, "K B M C"]:
        """Draw `count` fields from the method's posterior; ValueError if it has none."""
        if self.draw is None:
            raise ValueError("this method gives a mean without samples; choose a Gaussian process, optimal interpolation or a flow model")
        return self.draw(count, generator)


def generator(seed: int, role: str, device="cpu") -> torch.Generator:
    """An independent random stream per role (train, validation, test, sensors, noise, init ...), the same on every machine."""
    digest = hashlib.sha256(f"{role}:{seed}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


# ---- what the readings and the truth are scaled by ----


@dataclass(frozen=True)
class Scaling:
    """Mean, standard deviation and range of each channel, measured on the training fields."""

    mean: Float[Tensor, " C"]
    std: Float[Tensor, " C"]
    low: Float[Tensor, " C"]
    high: Float[Tensor, " C"]

    def normalise(self, y: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Values with the channel last, to mean 0 and standard deviation 1."""
        return (y - self.mean.to(y)) / self.std.to(y)

    def restore(self, y: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """The inverse of normalise."""
        return y * self.std.to(y) + self.mean.to(y)


def measure(fields: Tensor) -> Scaling:
    """The scaling of these fields (n, C, H, W) without their NaN; a channel that never changes has std 1, so that none is divided by 0."""
    y = check(fields).double().movedim(1, 0).flatten(1)  # (C, n*H*W)
    known = y.isfinite()
    if not known.any(1).all():
        raise ValueError("a channel of these fields is NaN everywhere; give fields with values")
    count = known.sum(1)
    mean = y.where(known, 0).sum(1) / count
    std = ((y - mean[:, None]).where(known, 0).square().sum(1) / count).sqrt()
    std = std.where(std > 1e-7 * (1 + mean.abs()), 1)
    low, high = y.where(known, torch.inf).amin(1), y.where(known, -torch.inf).amax(1)
    return Scaling(*(v.float() for v in (mean, std, low, high)))


# ---- readings of a field ----


def check(fields: Tensor) -> Tensor:
    """The fields themselves; ValueError unless they are floating point (n, C, H, W)."""
    if not isinstance(fields, Tensor) or fields.ndim != 4 or not fields.is_floating_point():
        given = f"{tuple(fields.shape)} {fields.dtype}" if isinstance(fields, Tensor) else type(fields).__name__
        raise ValueError(f"fields are {given}; give a floating-point tensor (fields, channels, rows, columns)")
    return fields


class Kept(WeakIdKeyDictionary):
    """What was made of fields, kept while they live and made again after a change in place."""

    def get(self, fields: Tensor, make: Callable[[Tensor], object]):
        """What make(fields) gave."""
        now = 0 if fields.is_inference() else fields._version  # grows with every change in place
        version, made = super().get(fields, (None, None))
        if made is None or version != now:
            made = make(fields)
            self[fields] = (now, made)
        return made


def layout_of(name: str) -> Callable[..., Tensor]:
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout '{name}'; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def _enough(known: Bool[Tensor, "n P"], needed: int, what: str) -> None:
    """ValueError if a field has fewer sites with values than are asked for (waits for the device once)."""
    if needed < 0:
        raise ValueError(f"{what} is {needed}; give 0 or more")
    least, field = known.sum(1).min(0)
    if needed > least:
        raise ValueError(
            f"{what} is {needed}, but field {int(field)} has values at {int(least)} of its {known.shape[1]} sites; ask for at most that"
        )


def _sensors(device) -> torch.Generator:
    return generator(0, "sensors", device)


def observe(
    fields: Tensor,
    count: int,
    layout: str = "uniform",
    generator: torch.Generator | None = None,
    noise: float = 0.0,
    missing: float = 0.0,
) -> Batch:
    """Read each field at `count` of its sites and ask for all of them, row by row.

    noise is relative to the sine's amplitude before the map (z + 1) / 2, so its standard deviation is 0.5 * noise; missing is the share of
    readings lost. The same generator gives the same sites, losses and unit noise at every level. Without one, the sensors of seed 0.
    """
    keys, known = layout_of(layout), valid(check(fields))
    _enough(known, count, "count of readings")
    if not noise >= 0 or not 0 <= missing <= 1:
        raise ValueError(f"noise is {noise} and missing {missing}; noise is at least 0, missing a share between 0 and 1")
    generator = _sensors(fields.device) if generator is None else generator
    n, channels = fields.shape[:2]
    chosen = keys(fields, count, generator).masked_fill(~known, -torch.inf).topk(count, dim=1).indices  # (n, N)
    lost = torch.rand(n, count, generator=generator, device=fields.device) < missing
    error = torch.randn(n, count, channels, generator=generator, device=fields.device, dtype=fields.dtype)
    s, y = grid(fields.shape[-2:], fields.device), fields.flatten(2).mT  # (P, 2), (n, P, C)
    y_obs = y.gather(1, chosen[..., None].expand(-1, -1, channels)) + 0.5 * noise * error
    return Batch(s[chosen], y_obs.masked_fill(lost[..., None], 0), ~lost, s.expand(n, -1, -1), y)


def readings(s_obs: Float[Tensor, "B N 2"], y_obs: Float[Tensor, "B N C"], s_qry: Float[Tensor, "B M 2"]) -> Batch:
    """A batch of someone's own readings: NaN counts as missing, the truth at the queries is unknown (NaN)."""
    known = y_obs.isfinite().all(-1)
    return Batch(s_obs, y_obs.where(known[..., None], 0), known, s_qry, y_obs.new_full((*s_qry.shape[:2], y_obs.shape[-1]), torch.nan))


# ---- the endless stream of batches for training ----


def batches(
    fields: Float[Tensor, "n C H W"],
    batch_size: int = 32,
    readings: int | tuple[int, int] = 51,
    queries: int | str = 51,
    sensors: str = "field",
    positions: str = "global",
    layout: str = "uniform",
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    device=None,
    augment: str = "none",
) -> Stream:
    """An endless iterator of batches; the fields come in shuffled order, each once per epoch, and every batch is full.

    sensors and positions (of the queries) are "global", one set for all fields, "field", one per field, or "step", redrawn for every batch.
    Queries are never among the readings, unless queries is "all": every site of the grid. Two numbers for readings draw one between them
    for every field and step and mask the rest. Noise as in `observe`, redrawn at every step. Everything happens on `device`, by default
    where the fields are; the generator must be there too. augment moves every field before it is read, from a random stream of its own.
    """
    for name, value in (("sensors", sensors), ("positions", positions)):
        if value not in LEVELS:
            raise ValueError(f"{name} is '{value}'; choose one of: {', '.join(LEVELS)}")
    low, high = (readings, readings) if isinstance(readings, int) else readings
    if queries != "all" and not isinstance(queries, int):
        raise ValueError(f"queries is {queries!r}; give a whole number or 'all'")
    if not (0 <= low <= high and batch_size >= 1 and len(fields) >= 1 and noise >= 0):
        raise ValueError(
            f"{len(fields)} fields, batch_size {batch_size}, readings {readings}, noise {noise}; none may be negative or empty"
        )
    known = valid(check(fields))
    moves.check(augment, tuple(fields.shape[-2:]), augment == "none" or bool(known.all()))
    _enough(known, high + (0 if queries == "all" else queries), "count of readings and queries together")
    fields = fields if device is None else fields.to(device)
    generator = _stream(0, fields.device) if generator is None else generator
    if generator.device.type != fields.device.type:
        raise ValueError(f"the generator is on {generator.device} and the batches are made on {fields.device}; make both on one device")
    return Stream(fields, batch_size, (low, high), queries, sensors, positions, layout_of(layout), noise, generator, augment)


LEVELS = ("global", "field", "step")


def _stream(seed: int, device) -> torch.Generator:
    return generator(seed, "batches", device)


class Stream:
    """What `batches` returns; its state: the generator's, the order of fields and the place in it; fixed sets follow from the seed."""

    def __init__(self, fields, batch_size, count, queries, sensors, positions, layout, noise, generator, augment="none"):
        n, _, *shape = fields.shape
        self.fields, self.batch_size, self.count = fields, batch_size, count
        self.layout, self.noise, self.generator, self.augment = layout, noise, generator, augment
        self.sites, self.values, self.known = grid(tuple(shape), fields.device), fields.flatten(2).mT.contiguous(), valid(fields)
        self.level = {"read": sensors} if queries == "all" else {"read": sensors, "asked": positions}
        self.size = {"read": count[1], "asked": 0 if queries == "all" else queries}
        self.one_draw = layout is uniform and list(self.level.values()) == ["step", "step"]
        self.order, self.position = torch.randperm(n, generator=generator, device=fields.device), 0
        self._fix(generator.initial_seed())

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Batch:
        index = self._next_fields()
        self.current = y = self._values_of(index)  # (B, P, C), kept for penalties that look at whole fields
        read, asked = self._sites_of(index)
        y_obs, s_obs = _gather(y, read), self.sites[read]
        m_obs = torch.ones(read.shape, dtype=torch.bool, device=read.device)
        if self.noise > 0:
            y_obs = y_obs + 0.5 * self.noise * torch.randn(y_obs.shape, generator=self.generator, device=y.device, dtype=y.dtype)
        low, high = self.count
        if low < high:
            u = torch.rand(len(read), 1, generator=self.generator, device=y.device)
            m_obs = torch.arange(high, device=y.device) < low + (u * (high - low + 1)).floor()
            y_obs = y_obs.masked_fill(~m_obs[..., None], 0)
        if asked is None:
            return Batch(s_obs, y_obs, m_obs, self.sites.expand(len(index), -1, -1), y)
        return Batch(s_obs, y_obs, m_obs, self.sites[asked], _gather(y, asked))

    def _next_fields(self) -> Tensor:
        while len(self.order) - self.position < self.batch_size:
            more = torch.randperm(len(self.fields), generator=self.generator, device=self.order.device)
            self.order, self.position = torch.cat([self.order[self.position :], more]), 0
        self.position += self.batch_size
        return self.order[self.position - self.batch_size : self.position]

    def _values_of(self, index: Tensor) -> Tensor:
        """These fields as values (B, P, C), augmented if asked for."""
        y = self.values[index]
        if self.augment == "none":
            return y
        return _gather(y, moves.source(self.augment, len(index), tuple(self.fields.shape[-2:]), self.moving))

    def _sites_of(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Indices of the sites read (B, N) and asked (B, M); None asks for all. Fixed sets stand, redrawn ones avoid them."""
        known = self.known[index]
        if self.one_draw:  # the readings are part of one draw without replacement, the queries the rest of it
            keys = torch.rand(known.shape, generator=self.generator, device=known.device).masked_fill(~known, -1)
            return keys.topk(self.size["read"] + self.size["asked"]).indices.split([self.size["read"], self.size["asked"]], 1)
        sets = {name: sites[index] if len(sites) > 1 else sites.expand(len(index), -1) for name, sites in self.fixed.items()}
        fields = self.fields[index] if self.augment == "none" else self.current.mT.unflatten(2, self.fields.shape[-2:])
        sets = self._draw("step", fields, known, sets, self.generator)
        return sets["read"], sets.get("asked")

    def _draw(self, level: str, fields: Tensor, known: Tensor, sets: dict[str, Tensor], stream: torch.Generator) -> dict[str, Tensor]:
        """The sets of this level beside those that stand already: sites with values that no other set holds."""
        for name in (name for name, its in self.level.items() if its == level):
            free = known.clone()
            for taken in sets.values():
                free.scatter_(1, taken, False)
            keys = self.layout(fields, self.size[name], stream) if name == "read" else uniform(fields, self.size[name], stream)
            sets = {**sets, name: keys.masked_fill(~free, -torch.inf).topk(self.size[name]).indices}
        return sets

    def _fix(self, seed: int) -> None:
        """Draw the sets that never change, those for all fields first: they follow from the seed alone, so they survive a resume."""
        self.seed, stream = seed, generator(seed, "fixed sites", self.fields.device)
        self.moving = generator(seed, "augment", self.fields.device)
        everywhere = self.known.all(0, keepdim=True)
        shared_by_all = sum(self.size[name] for name, level in self.level.items() if level == "global")
        _enough(everywhere, shared_by_all, "count of sites for all fields")
        shared = self._draw("global", self.fields.nan_to_num(0).mean(0, keepdim=True), everywhere, {}, stream)
        parts = []
        for i in range(0, len(self.fields), 1024):  # bounds the memory of the keys
            known = self.known[i : i + 1024]
            beside = {name: sites.expand(len(known), -1) for name, sites in shared.items()}
            parts.append(self._draw("field", self.fields[i : i + 1024], known, beside, stream))
        self.fixed = {name: shared[name] if name in shared else torch.cat([part[name] for part in parts]) for name in parts[0]}

    def state_dict(self) -> dict:
        """Everything that the next batches depend on besides the arguments."""
        own = {"generator": self.generator.get_state(), "order": self.order.cpu(), "position": self.position, "seed": self.seed}
        return own | {"moving": self.moving.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Continue where another stream with the same arguments stood, bit for bit."""
        if state["seed"] != self.seed:
            self._fix(state["seed"])
        self.generator.set_state(state["generator"].cpu())
        if "moving" in state:  # checkpoints from before augmentation lack it
            self.moving.set_state(state["moving"].cpu())
        self.order, self.position = state["order"].to(self.order.device), state["position"]


def _gather(y: Tensor, sites: Tensor) -> Tensor:
    return y.gather(1, sites[..., None].expand(-1, -1, y.shape[-1]))

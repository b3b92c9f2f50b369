"""One view of the playground: which field is read where and answered how, as plain values that a parameter file holds.

    View -> batch (readings with the user's edits, all sites as queries) -> answer (mean or sample, deviation, scores, path over flow time)

Edits are a log in words, `add X Y`, `move I X Y`, `remove I`, in sites of [-1, 1]^2; I counts the readings as they stood. A reading keeps
its error when it is moved, one that is added draws its own, so that a view is the same wherever it is opened.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from lib import baselines, contest, data, exactflow, flow, metrics, ode, trained, v5, worlds
from lib.data import Batch, Prediction

EXACT = "exact flow"
NAMES = tuple(name for name in worlds.WORLDS if name != "cifar10")
METHODS = (*baselines.METHODS, "v5", EXACT, *trained.flows())
RESOLUTIONS = (32, 64, 96, 128, 192, 256)
SHOWS = ("mean", "sample")
DRAWS = 8  # of a flow, whose mean and deviation they give
PAST = 200  # past fields that methods learn from
MOST_EDITS = 400


@dataclass(frozen=True)
class View:
    """Plain values; ValueError where one is not allowed. Measured worlds keep their own grid, whatever `resolution` says."""

    world: str = "plane"
    method: str = "v5"
    layout: str = "uniform"
    readings: int = 13
    noise: float = 0.0
    seed: int = 0  # of the field, its readings and their errors
    resolution: int = 32
    steps: int = 8
    solver: str = "heun"
    show: str = "mean"
    clamp: bool = False  # of the answer, to [0, 1]
    edits: tuple[str, ...] | list[str] = ()

    def __post_init__(self):
        object.__setattr__(self, "edits", tuple(self.edits))
        worlds.get(self.world)
        for name, allowed in {"method": METHODS, "layout": data.LAYOUTS, "solver": ode.METHODS, "show": SHOWS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is '{getattr(self, name)}'; choose one of: {', '.join(allowed)}")
        if not (0 <= self.readings <= 1024 and self.noise >= 0 and self.steps >= 1 and 2 <= self.resolution <= 256):
            given = ", ".join(f"{name} {getattr(self, name)}" for name in ("readings", "noise", "steps", "resolution"))
            raise ValueError(f"{given}; allowed are 0 to 1024 readings, noise from 0, steps from 1, resolution 2 to 256")
        if len(self.edits) > MOST_EDITS:
            raise ValueError(f"{len(self.edits)} edits; at most {MOST_EDITS} are kept: undo some, or reset")

    def told(self) -> dict:
        """As a parameter file holds it."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}


@dataclass(frozen=True)
class Answer:
    """What is shown (M, C): the mean or a sample, a deviation where the method has one; scores, seconds, and the path of one draw.

    path: times, and y_t at each (F, M, C) of the draw that is shown or counts first; () for a method without flow.
    """

    shown: Float[Tensor, "M C"]
    std: Float[Tensor, "M C"] | None
    psnr: float
    ssim: float
    seconds: float
    path: tuple = ()
    quick: bool = False  # V5 before it has learned all it can


# ---- readings ----


def shape(view: View) -> tuple[int, int]:
    """Rows and columns of the answer."""
    place = worlds.get(view.world)
    return data.shape_of(place.resolution if place.formula is None else view.resolution)


def batch(view: View) -> Batch:
    """The view's readings, edits applied, with every site of the answer's grid as a query and the truth there."""
    s, y, _ = _read(view)
    truth = _fields(view.world, view.seed, shape(view))
    rows = shape(view)
    return Batch(s[None], y[None], torch.ones(1, len(s), dtype=torch.bool), data.grid(rows)[None], truth.flatten(2).mT)


@functools.lru_cache(maxsize=16)
def _fields(world: str, seed: int, rows: tuple[int, int]) -> Tensor:
    return worlds.get(world).fields(1, rows, generator=data.generator(seed, "test"), split="test")


@functools.lru_cache(maxsize=32)
def _first(world: str, seed: int, layout: str, readings: int, noise: float) -> tuple[Tensor, Tensor]:
    """Sites (N, 2) and errors (N, C) of the readings before any edit, on the world's own grid."""
    truth = _fields(world, seed, data.shape_of(worlds.get(world).resolution))
    seen, exact = (data.observe(truth, readings, layout, data.generator(seed, "sensors"), v) for v in (noise, 0.0))
    return seen.s_obs[0], seen.y_obs[0] - exact.y_obs[0]


def _read(view: View) -> tuple[Tensor, Tensor, int]:
    """Sites (N, 2) and values (N, C) after all edits, and how many readings were added; ValueError for an edit that cannot be made."""
    s, error = _first(view.world, view.seed, view.layout, view.readings, view.noise)
    sites, errors, added = list(s.unbind()), list(error.unbind()), 0
    for edit in view.edits:
        kind, index, site = parsed(edit)
        if index is not None and index >= len(sites):
            raise ValueError(f"edit '{edit}' names reading {index} of {len(sites)}; count from 0")
        if kind == "remove":
            del sites[index], errors[index]
            continue
        place = snapped(view, site)
        if kind == "move":
            sites[index] = place
        else:
            sites.append(place)
            errors.append(0.5 * view.noise * _error(view.seed, added, error.shape[1]))
            added += 1
    if not sites:
        return s.new_zeros(0, 2), error.new_zeros(0, error.shape[1]), added
    where = torch.stack(sites)
    return where, values(view, where) + torch.stack(errors), added


def parsed(edit: str) -> tuple[str, int | None, tuple[float, float] | None]:
    """An edit's kind, reading and site; ValueError for words that are none."""
    kind, *numbers = edit.split()
    try:
        if kind == "add" and len(numbers) == 2:
            index, site = None, tuple(map(float, numbers))
        elif kind == "move" and len(numbers) == 3:
            index, site = int(numbers[0]), tuple(map(float, numbers[1:]))
        elif kind == "remove" and len(numbers) == 1:
            index, site = int(numbers[0]), None
        else:
            raise ValueError
        if (index is not None and index < 0) or (site is not None and not all(abs(x) <= 1 for x in site)):
            raise ValueError
    except ValueError:
        raise ValueError(f"edit '{edit}' is none; write `add X Y`, `move I X Y` or `remove I` with X and Y from -1 to 1") from None
    return kind, index, site


def snapped(view: View, site: Sequence[float]) -> Tensor:
    """The site itself where the field has a formula, else the nearest node that has a value."""
    place, s = worlds.get(view.world), torch.tensor(site, dtype=torch.float32)
    if place.formula is not None:
        return s
    truth = _fields(view.world, view.seed, shape(view))
    apart = (data.grid(shape(view)) - s).square().sum(1)
    return data.grid(shape(view))[apart.masked_fill(~data.valid(truth)[0], torch.inf).argmin()]


def values(view: View, s: Float[Tensor, "N 2"]) -> Float[Tensor, "N C"]:
    """The truth at sites: exact by the formula, or at the nearest node."""
    place = worlds.get(view.world)
    if place.formula is not None:
        return place.at(place.draw(1, data.generator(view.seed, "test")), s[None])[0].float()
    truth = _fields(view.world, view.seed, shape(view)).flatten(2)[0].mT
    return truth[torch.cdist(s.double(), data.grid(shape(view), dtype=torch.float64)).argmin(1)]


def _error(seed: int, number: int, channels: int) -> Tensor:
    """The unit error of the reading that was added as this number."""
    return torch.randn(number + 1, channels, generator=data.generator(seed, "added"))[number]


def edited(view: View, edit: str) -> tuple[str, ...]:
    """The view's log with one edit more; moves of one reading in a row count once."""
    kind, index, site = parsed(edit)
    written = " ".join([kind, *([] if index is None else [str(index)]), *(f"{x:.4g}" for x in site or ())])
    last = parsed(view.edits[-1])[:2] if view.edits else None
    return (*(view.edits[:-1] if kind == "move" and last == (kind, index) else view.edits), written)


# ---- answers ----


def answer(view: View, past: int = PAST, quick: bool = False) -> Answer:
    """The method's answer to the view's readings; quick: V5 with the experts that need no learning, where the others are not at hand."""
    asked = batch(view)
    draw = data.generator(view.seed, "samples")
    quick = quick and view.method == "v5" and not trained.at_hand(view.world, past)
    _learn(view, past, quick)
    began = time.perf_counter()
    found, path = _asked(view, asked, past, quick, draw)
    shown = found.mean
    if view.show == "sample":
        shown = found.samples(1, draw)[0]
    shown = shown.clamp(0, 1) if view.clamp else shown
    seconds = time.perf_counter() - began
    truth, rows = asked.y_qry.double(), shape(view)
    psnr = metrics.psnr((shown.double() - truth).square().nanmean((1, 2)))
    ssim = metrics.ssim(shown.double().unflatten(1, rows), truth.unflatten(1, rows))
    std = None if found.std is None else found.std[0]
    return Answer(shown[0], std, float(psnr), float(ssim), seconds, path, quick)


def _learn(view: View, past: int, quick: bool) -> None:
    """What is learned once and kept, so that it does not count as the answer's time."""
    trained.past_fields(view.world, past)
    if view.method == "v5":
        (trained.quick_prior if quick else trained.prior)(view.world, past)


def _asked(view: View, asked: Batch, past: int, quick: bool, draw: torch.Generator) -> tuple[Prediction, tuple]:
    """Mean, deviation and samples of the view's method, and for a flow the path of its first draw."""
    if view.method == "v5":
        return v5.predict((trained.quick_prior if quick else trained.prior)(view.world, past), asked), ()
    if view.method in baselines.METHODS:
        return baselines.METHODS[view.method](asked, trained.past_fields(view.world, past)), ()
    count, times, states = 1 if view.show == "sample" else DRAWS, [], []

    def seen(t: float, y: Tensor) -> None:
        if len(times) <= view.steps:  # a model shows its draws one after the other, the first is enough
            times.append(t)
            states.append(y[:1])

    if view.method == EXACT:
        prior = trained.quick_prior(view.world, past)
        draws = exactflow.sample(prior, asked, draw, view.steps, view.solver, count, seen)[:, None]
    else:
        draws = flow.sample(trained.flow(view.method, view.world), asked, draw, view.steps, view.solver, count, callback=seen)
    std = draws.std(0) if count > 1 else None
    return Prediction(draws.mean(0), std, lambda k, generator: draws[:k]), (times, torch.cat(states))


def uses_steps(method: str) -> bool:
    """Whether a method is a flow, which a solver follows in steps."""
    return method not in baselines.METHODS and method != "v5"


def rivals(view: View, past: int = PAST) -> dict[str, float | str]:
    """PSNR of the mean of every classical method, and of V5 where it is at hand, on these readings and the world's own grid, or why not."""
    own = worlds.get(view.world).resolution
    asked = batch(View(**view.told() | {"resolution": own if isinstance(own, int) else 32}))
    found: dict[str, float | str] = {}
    for name in [*baselines.METHODS, *(["v5"] if trained.at_hand(view.world, past) else [])]:
        try:
            if name == "v5":
                mean = v5.mean(trained.prior(view.world, past), asked)
            else:
                mean = baselines.METHODS[name](asked, trained.past_fields(view.world, past)).mean
            found[name] = float(metrics.psnr((mean.double() - asked.y_qry.double()).square().nanmean((1, 2))))
        except (ValueError, RuntimeError) as error:
            found[name] = str(error).splitlines()[0]
    return found


def best(found: dict[str, float | str], but: str = "") -> tuple[str, float] | None:
    """The best of those that are told no formula, without `but`."""
    told = {name: v for name, v in found.items() if isinstance(v, float) and name in (*contest.BLIND, "v5") and name != but}
    return max(told.items(), key=lambda pair: pair[1]) if told else None

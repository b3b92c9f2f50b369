"""Where fields come from: synthetic worlds, exact at any site, and real ones that lie inside installed packages.

A synthetic field is y = (z + 1) / 2 with z a sum of sines of a few uniform random numbers per field, or of many for a Gaussian process
whose covariance is known (lib/gaussian.py; gaussian_covariance). X, Y run over [0, 2 pi] from left to
right and from top to bottom, so X = pi (s1 + 1); r is the distance from the centre in the same unit; wavenumbers are angular in that unit.

Where a formula leaves a choice, the reading was taken whose linear dimension (principal components for 99.9 % of the variance of 3,000
fields on a 32 x 32 grid), constant score and scores of optimal interpolation and thin plates come closest to the published table:
  all              kx and ky are drawn independently, both positive (a random direction: 58 dimensions on `plane`; this: the published 34)
  multi_frequency  the sum is divided by the number of waves (16.7 dB, published 16.6), not by the sum of amplitudes (12.7)
  interference     kx and ky are shifted separately (112 dimensions, published 113; a shift along one direction: 193)
  modulated        amplitude modulation with wave vectors for carrier and modulator; frequency modulation of a carrier along X, as in k X,
                   by a modulator along X or Y (244 dimensions, published 250; wave vectors throughout: 292; everything along X: 25)
  composite        a real-valued order, hence a jump to the left of the centre (49 dimensions, OI 35.1 dB, published 53 and 35.1; whole
                   orders: 47 and 37.5)
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lib import data, files, gaussian, realworlds

TURN = 2 * math.pi
CHUNK = 2**20  # site values computed at once: 8 MB in float64

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class World:
    """One row of the WORLDS table: where fields (n, C, H, W) come from and what is known about them. Either `formula` or `load` is set.

    low and high bound the values, 99 % of them for a Gaussian process. A real world is scaled by the range of its training part, so its
    held-out part may leave [0, 1] a little.
    """

    name: str
    kind: str  # "synthetic", "process" (synthetic too, of known covariance), "real" or "own"
    note: str
    channels: int = 1
    resolution: int | tuple[int, int] = 32
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    source: str = "a formula"
    licence: str = "MIT"
    ranges: Ranges = field(default_factory=dict)  # synthetic: each parameter is uniform in (low, high)
    formula: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor] | None = None  # synthetic: z of the parameters, X and Y
    load: Callable[[], realworlds.Pool] | None = None  # real and own

    def fields(
        self, n: int, resolution: data.Resolution = None, generator: torch.Generator | None = None, split: str = "train"
    ) -> Float[Tensor, "n C H W"]:
        """n fields in float32, on the generator's device; without a generator, those of the split's stream of seed 0."""
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"number of fields is {n!r}; give a whole number, 0 or more")
        if split not in realworlds.SPLITS:
            raise ValueError(f"unknown split '{split}'; choose one of: {', '.join(realworlds.SPLITS)}")
        generator = data.generator(0, split) if generator is None else generator
        shape = data.shape_of(self.resolution if resolution is None else resolution)
        if self.load is not None:
            return realworlds.take(self._pool(shape), n, shape, generator, split)
        params = self.draw(n, generator)
        s = data.grid(shape, generator.device, torch.float64)[None]  # (1, H*W, 2)
        step = max(1, CHUNK // s.shape[1])
        parts = [self.at({k: v[i : i + step] for k, v in params.items()}, s).float() for i in range(0, max(n, 1), step)]
        return torch.cat(parts).mT.reshape(n, self.channels, *shape)

    def draw(self, n: int, generator: torch.Generator) -> dict[str, Float[Tensor, " n"]]:
        """The random numbers of n synthetic fields; the first fields of a stream do not depend on n (on a CPU)."""
        self._must_have_a_formula()
        u = torch.rand(n, len(self.ranges), generator=generator, device=generator.device, dtype=torch.float64)
        return {name: low + (high - low) * u[:, i] for i, (name, (low, high)) in enumerate(self.ranges.items())}

    def at(self, params: Mapping[str, Tensor], s: Float[Tensor, "#n M 2"]) -> Float[Tensor, "n M C"]:
        """Exact values of synthetic fields at any sites, in float64; s may be (1, M, 2) for sites shared by all fields."""
        self._must_have_a_formula()
        turn = math.pi * (s.double() + 1)
        columns = {name: value.double()[:, None] for name, value in params.items()}
        return ((self.formula(columns, turn[..., 0], turn[..., 1]) + 1) / 2)[..., None]

    @functools.cached_property
    def std(self) -> float:
        """Standard deviation over all values of 1,000 training fields, for nRMSE."""
        y = self.fields(1000).double()
        return float(y[y.isfinite()].std())

    def to_units(self, y: Tensor) -> Tensor:
        """Values of this world in its physical unit; a synthetic world has none and returns them as they are."""
        if self.load is None:
            return y
        pool = self.load()
        return pool.low + (pool.high - pool.low) * y

    def axes(self) -> tuple[tuple[str, np.ndarray], ...]:
        """(name, values) of the coordinate downwards, then of the one to the right; () where the world has none."""
        return () if self.load is None else self.load().axes

    def _must_have_a_formula(self):
        if self.formula is None:
            raise ValueError(
                f"world '{self.name}' is measured on a grid and has no formula; use fields(n), or one of: {', '.join(SYNTHETIC)}"
            )

    def _pool(self, shape: tuple[int, int]) -> realworlds.Pool:
        """The fields, once it is clear that they have this shape or can be cropped to it."""
        pool, largest = self.load(), data.shape_of(self.resolution)
        if pool.crop:
            largest = tuple(min(part.shape[d] for parts in pool.parts.values() for part in parts) for d in (-2, -1))
        if any(n > most if pool.crop else n != most for n, most in zip(shape, largest, strict=True)):
            allowed = f"patches up to {largest[0]} x {largest[1]}" if pool.crop else f"{largest[0]} x {largest[1]} only"
            raise ValueError(f"world '{self.name}' is asked for {shape[0]} x {shape[1]}; it has {allowed}: change or leave out resolution")
        return pool


def get(name: str) -> World:
    """The world of that name; ValueError lists the known ones."""
    if name in WORLDS:
        return WORLDS[name]
    near = difflib.get_close_matches(str(name), WORLDS, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown world '{name}'; known: {', '.join(WORLDS)}{hint}")


def open_fields(path: str | Path, variable: str | None = None, seed: int = 0) -> World:
    """The user's own fields (.npy .npz .nc .csv, a picture or a folder of them), scaled to [0, 1] and split 80/10/10 by the seed."""
    found = files.read_fields(path, variable)
    pool = files.split(found, seed)
    n, channels, *shape = found.y.shape
    return World(
        name=Path(path).stem,
        kind="own",
        note=f"{n} fields" + ("; too few to split, so training, validation and test are the same" if n < 3 else ""),
        channels=channels,
        resolution=tuple(shape),
        unit=found.unit,
        source=str(path),
        licence="the user's",
        load=lambda: pool,
    )


def cifar10(folder: str | Path) -> World:
    """The world cifar10 from a folder given here rather than in the environment."""
    return dataclasses.replace(WORLDS["cifar10"], load=functools.partial(realworlds.cifar10, folder))


# ---- formulas: p holds columns (n, 1), X and Y are (n, M); the result is z (n, M), before (z + 1) / 2 ----


def _separable(p, X, Y):
    return torch.sin(TURN * p["fx"] * (X / math.pi - 1)) + torch.sin(TURN * p["fy"] * (Y / math.pi - 1))


def _wave(p, X, Y, i=""):
    return torch.sin(p[f"kx{i}"] * X + p[f"ky{i}"] * Y + p[f"phase{i}"])


def _multi_frequency(p, X, Y):
    count = p["waves"].floor()
    waves = p["a1"] * _wave(p, X, Y, 1) + p["a2"] * _wave(p, X, Y, 2) + (count > 2) * p["a3"] * _wave(p, X, Y, 3)
    return waves / count


def _radial(p, X, Y):
    return torch.sin(p["k"] * torch.hypot(X - math.pi, Y - math.pi) + p["phase"])


def _interference(p, X, Y):
    second = torch.sin((p["kx"] + p["dx"]) * X + (p["ky"] + p["dy"]) * Y + p["phase2"])
    return _wave(p, X, Y) + second


def _modulated(p, X, Y):
    am = (1 + p["m"] * torch.sin(p["qx"] * X + p["qy"] * Y + p["slow_phase"])) * _wave(p, X, Y)
    slow = torch.sin(p["qx"] * torch.where(p["along_y"] < 0.5, X, Y) + p["slow_phase"])
    fm = torch.sin(p["kx"] * X + p["phase"] + p["beta"] * slow)
    return torch.where(p["fm"] < 0.5, am, fm)


def _composite(p, X, Y):
    angular = torch.sin(p["order"] * torch.atan2(Y - math.pi, X - math.pi) + p["angular_phase"])
    plane = torch.sin(p["kx"] * X + p["ky"] * Y + p["plane_phase"])
    return 0.4 * _radial(p, X, Y) + 0.3 * angular + 0.3 * plane


def _plane_ranges(low: float, high: float, i="") -> Ranges:
    return {f"kx{i}": (low, high), f"ky{i}": (low, high), f"phase{i}": (0.0, TURN)}


WORLDS: dict[str, World] = {
    w.name: w
    for w in (
        World(
            name="separable",
            kind="synthetic",
            note="sin(2 pi fx s1) + sin(2 pi fy s2), f in 0.5-1.5: the `simple` world of the documents",
            low=-0.5,
            high=1.5,
            ranges={"fx": (0.5, 1.5), "fy": (0.5, 1.5)},
            formula=_separable,
        ),
        World(
            name="plane",
            kind="synthetic",
            note="one plane wave, k in 1-3",
            ranges=_plane_ranges(1, 3),
            formula=_wave,
        ),
        World(
            name="multi_frequency",
            kind="synthetic",
            note="mean of two or three waves, k in 0.5-5, amplitude 0.3-1",
            ranges={
                "waves": (2.0, 4.0),
                **{k: v for i in (1, 2, 3) for k, v in {**_plane_ranges(0.5, 5, i), f"a{i}": (0.3, 1.0)}.items()},
            },
            formula=_multi_frequency,
        ),
        World(
            name="radial",
            kind="synthetic",
            note="sin(k r + phase) about the centre, k in 2-8",
            ranges={"k": (2.0, 8.0), "phase": (0.0, TURN)},
            formula=_radial,
        ),
        World(
            name="interference",
            kind="synthetic",
            note="two waves, k in 2-6, the second within 1 of the first",
            low=-0.5,
            high=1.5,
            ranges={**_plane_ranges(2, 6), "dx": (-1.0, 1.0), "dy": (-1.0, 1.0), "phase2": (0.0, TURN)},
            formula=_interference,
        ),
        World(
            name="modulated",
            kind="synthetic",
            note="half of the fields amplitude modulated, half frequency modulated: carrier 3-7, modulator 0.5-2, m 0.5-1, beta 1-3",
            low=-0.5,
            high=1.5,
            ranges={
                "fm": (0.0, 1.0),
                **_plane_ranges(3, 7),
                "qx": (0.5, 2.0),
                "qy": (0.5, 2.0),
                "along_y": (0.0, 1.0),
                "slow_phase": (0.0, TURN),
                "m": (0.5, 1.0),
                "beta": (1.0, 3.0),
            },
            formula=_modulated,
        ),
        World(
            name="composite",
            kind="synthetic",
            note="0.4 radial + 0.3 angular (order 2-5) + 0.3 plane wave",
            ranges={
                "k": (2.0, 8.0),
                "phase": (0.0, TURN),
                "order": (2.0, 5.0),
                "angular_phase": (0.0, TURN),
                "kx": (1.0, 3.0),
                "ky": (1.0, 3.0),
                "plane_phase": (0.0, TURN),
            },
            formula=_composite,
        ),
        World(
            name="gaussian",
            kind="process",
            note="Gaussian process, squared exponential of length scale 0.3 and deviation 0.2: its covariance is known",
            ranges=gaussian.RANGES,
            formula=gaussian.formula,
        ),
        World(
            name="air",
            kind="real",
            note="yearly air temperature over North America, model runs A1B (training) and E1 (test)",
            resolution=(37, 49),
            unit="K",
            source="iris-sample-data: A1B_north_america.nc, E1_north_america.nc (Met Office)",
            licence="Open Government Licence",
            load=realworlds.air,
        ),
        World(
            name="sst",
            kind="real",
            note="monthly sea-surface temperature along the equator, land masked",
            resolution=(18, 54),
            unit="K",
            source="iris-sample-data: ostia_monthly.nc (Met Office)",
            licence="Open Government Licence",
            load=realworlds.sst,
        ),
        World(
            name="terrain",
            kind="real",
            note="patches of an elevation map, the east held out",
            unit="m",
            source="matplotlib: jacksboro_fault_dem.npz",
            licence="sample data of matplotlib",
            load=realworlds.terrain,
        ),
        World(
            name="photos",
            kind="real",
            note="tiles of colour photographs at four scales, held out by photograph",
            channels=3,
            source="scikit-learn: china, flower; scikit-image: astronaut, coffee, rocket, chelsea",
            licence="CC BY 2.0 (china by danielbuechele, flower by vultilion); CC0 or public domain (the others)",
            load=realworlds.photos,
        ),
        World(
            name="faces",
            kind="real",
            note="100 grey faces, held out by picture",
            resolution=25,
            source="scikit-image: lfw_subset.npy (Labeled Faces in the Wild)",
            licence="not stated by scikit-image",
            load=realworlds.faces,
        ),
        World(
            name="cifar10",
            kind="real",
            note="colour pictures of ten kinds of things, from a folder the user names",
            channels=3,
            source=f"the folder in the environment variable {realworlds.CIFAR10_VARIABLE}",
            licence="not stated by its authors",
            load=realworlds.cifar10,
        ),
    )
}
gaussian_covariance = gaussian.covariance
# The seven worlds of the published table, which notebooks list; the Gaussian process is not one of them.
SYNTHETIC = tuple(name for name, w in WORLDS.items() if w.kind == "synthetic")

"""Real fields that lie inside installed packages (nothing is downloaded), and CIFAR-10 from a folder the user names.

Each loader returns a Pool: the fields in physical units, split into training, validation and test by what they show (scenario and year,
month, region, photograph), never by chance. Row 0 is the top: north, or the top of a picture.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import xarray
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

SPLITS = ("train", "validation", "test")
CIFAR10_VARIABLE = "SPARSE_FIELDS_CIFAR10"


@dataclass(frozen=True, eq=False)
class Pool:
    """Fields of a real world: for each split stacks (m, C, H, W) in physical units, and the range of the training part, mapped to [0, 1].

    crop: a field is a patch of a stack at a random place. axes: (name, values) of the coordinate downwards, then of the one to the right,
    where the fields have them.
    """

    parts: Mapping[str, list[Tensor]]
    low: float
    high: float
    crop: bool = False
    axes: tuple[tuple[str, np.ndarray], ...] = ()


def pool(parts: Mapping[str, list[Tensor]], crop: bool = False, axes: tuple[tuple[str, np.ndarray], ...] = ()) -> Pool:
    """A Pool whose range is that of its training part; ValueError if that has no value, or only one."""
    known = [k for k in (stack[stack.isfinite()] for stack in parts["train"]) if len(k)]
    if not known:
        raise ValueError("the training fields are NaN everywhere; give fields with values")
    low, high = min(float(k.min()) for k in known), max(float(k.max()) for k in known)
    if low == high:
        raise ValueError(f"the fields are {low:g} everywhere; give fields that vary, since values are scaled to [0, 1] by their range")
    return Pool(parts, low, high, crop, axes)


def take(pool: Pool, n: int, shape: tuple[int, int], generator: torch.Generator, split: str) -> Float[Tensor, "n C H W"]:
    """n fields of a split scaled to [0, 1] in random order; with replacement when there are fewer; patches at random places if it crops."""
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'; choose one of: {', '.join(SPLITS)}")
    if pool.crop:
        fields = torch.stack([_patch(pool.parts[split], shape, u) for u in _rand(n, 3, generator).tolist()]) if n else torch.zeros(0)
    else:
        stack = torch.cat(pool.parts[split]) if len(pool.parts[split]) > 1 else pool.parts[split][0]
        if n <= len(stack):
            order = torch.randperm(len(stack), generator=generator, device=generator.device)[:n]
        else:
            order = (_rand(n, 1, generator)[:, 0] * len(stack)).long()
        fields = stack[order.cpu()]
    return ((fields.double() - pool.low) / (pool.high - pool.low)).float().to(generator.device)


def _rand(n: int, numbers: int, generator: torch.Generator) -> Float[Tensor, "n numbers"]:
    return torch.rand(n, numbers, generator=generator, device=generator.device, dtype=torch.float64)


def _patch(stacks: list[Tensor], shape: tuple[int, int], u: list[float]) -> Shaped[Tensor, "C H W"]:
    """One patch: u picks the picture, the row and the column."""
    picture = stacks[int(u[0] * len(stacks))][0]
    top, left = (int(v * (size - n + 1)) for v, size, n in zip(u[1:], picture.shape[1:], shape, strict=True))
    return picture[:, top : top + shape[0], left : left + shape[1]]


def _inside(package: str, *path: str) -> Path:
    """A file of an installed package; ValueError naming the package if this version does not hold it."""
    file = Path(str(resources.files(package).joinpath(*path)))
    if not file.exists():
        raise ValueError(f"{'/'.join(path)} is not in this installation of {package} ; install the version of constraints.txt")
    return file


def _variable(file: Path, name: str) -> xarray.DataArray:
    with xarray.open_dataset(file, engine="h5netcdf") as data:
        return data[name].load().sortby("latitude", ascending=False)  # north at the top


def _axes(a: xarray.DataArray) -> tuple[tuple[str, np.ndarray], ...]:
    return tuple((name, a[name].values) for name in ("latitude", "longitude"))


@functools.cache
def air() -> Pool:
    """Yearly air temperature over North America, Met Office model: scenario A1B to learn from, E1 for the test.

    The two runs are identical up to 1999 (140 of 240 years), so the test is E1 from 2000 on: 100 fields. The last 40 years of A1B are the
    validation.
    """
    a1b, e1 = (_variable(_inside("iris_sample_data", "sample_data", f"{run}_north_america.nc"), "air_temperature") for run in ("A1B", "E1"))
    a, e = (torch.from_numpy(v.values)[:, None] for v in (a1b, e1))
    new = (a != e).flatten(1).any(1)
    return pool({"train": [a[:-40]], "validation": [a[-40:]], "test": [e[new]]}, axes=_axes(a1b))


@functools.cache
def sst() -> Pool:
    """Monthly sea-surface temperature within 5 degrees of the equator, April 2006 on: 36 months, then 6 for validation and 12 for the test.

    Windows of 45 degrees of longitude (18 x 54 sites) every 22.5 degrees around the globe; those with less than half sea are left out.
    """
    a = _variable(_inside("iris_sample_data", "sample_data", "ostia_monthly.nc"), "surface_temperature")
    globe = torch.from_numpy(a.values)[:, None]  # (54, 1, 18, 432), NaN on land
    windows = [torch.roll(globe, -start, -1)[..., :54] for start in range(0, 432, 27)]
    sea = [w for w in windows if w[0].isfinite().double().mean() >= 0.5]
    return pool({"train": [w[:36] for w in sea], "validation": [w[36:42] for w in sea], "test": [w[42:] for w in sea]})


@functools.cache
def terrain() -> Pool:
    """Elevation around the Jacksboro fault, Tennessee (90 m): the west for training, a strip for validation, the east for testing."""
    with np.load(_inside("matplotlib", "mpl-data", "sample_data", "jacksboro_fault_dem.npz")) as file:
        a = torch.from_numpy(file["elevation"].astype(np.float32))[None, None]
    return pool({"train": [a[..., :250]], "validation": [a[..., 250:320]], "test": [a[..., 320:]]}, crop=True)


PHOTOS = {
    "train": (("sklearn", "datasets", "images", "china.jpg"), ("skimage", "data", "astronaut.png"), ("skimage", "data", "coffee.png")),
    "validation": (("skimage", "data", "rocket.jpg"),),
    "test": (("sklearn", "datasets", "images", "flower.jpg"), ("skimage", "data", "chelsea.png")),
}


@functools.cache
def photos() -> Pool:
    """Colour photographs, each also at a half, a quarter and an eighth of its size; whole photographs are held out."""
    parts = {}
    for split, files in PHOTOS.items():
        whole = [Image.open(_inside(*file)).convert("RGB") for file in files]
        parts[split] = [torch.from_numpy(np.array(p.reduce(k))).movedim(-1, 0)[None] for p in whole for k in (1, 2, 4, 8)]
    return pool(parts, crop=True)


@functools.cache
def faces() -> Pool:
    """Faces of scikit-image's part of Labeled Faces in the Wild: the first 100 of its 200 pictures (the others show none), 25 x 25."""
    a = torch.from_numpy(np.load(_inside("skimage", "data", "lfw_subset.npy"))[:100].astype(np.float32))[:, None]
    return pool({"train": [a[:70]], "validation": [a[70:80]], "test": [a[80:]]})


def cifar10(folder: str | os.PathLike | None = None) -> Pool:
    """CIFAR-10 from the folder named here or in the environment: batches 1-4 for training, batch 5 for validation, the test batch."""
    folder = folder or os.environ.get(CIFAR10_VARIABLE) or ""
    what = f"unpack cifar-10-python.tar.gz and name its folder: {CIFAR10_VARIABLE}=/path/to/cifar-10-batches-py"
    if not folder:
        raise ValueError(f"cifar10 needs its files, and no folder is named; {what}")
    names = {"train": [f"data_batch_{i}" for i in (1, 2, 3, 4)], "validation": ["data_batch_5"], "test": ["test_batch"]}
    missing = [n for files in names.values() for n in files if not (Path(folder) / n).is_file()]
    if missing:
        raise ValueError(f"cifar10 folder '{folder}' lacks {', '.join(missing)}; {what}")
    return _cifar10(str(Path(folder).resolve()), tuple((split, tuple(files)) for split, files in names.items()))


@functools.cache
def _cifar10(folder: str, names: tuple[tuple[str, tuple[str, ...]], ...]) -> Pool:
    return pool({split: [_cifar_batch(Path(folder) / file) for file in files] for split, files in names})


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled dicts, bytes and numpy arrays; any other class in the file is refused, so that reading a foreign file runs no code."""

    def find_class(self, module, name):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return allowed[module, name]


def _cifar_batch(file: Path) -> UInt8[Tensor, "m 3 32 32"]:
    try:
        with file.open("rb") as stream:
            values = _ArraysOnly(stream, encoding="bytes").load()[b"data"]
        return torch.from_numpy(np.asarray(values, dtype=np.uint8).reshape(-1, 3, 32, 32).copy())
    except Exception as error:
        raise ValueError(f"{file} is not a batch of CIFAR-10 ({error}); unpack cifar-10-python.tar.gz again") from error

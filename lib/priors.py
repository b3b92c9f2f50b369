"""What V5 knows before any reading: learned by lib/v5.py from past fields, asked by lib/experts.py, kept in a file of weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lib import basis, hybrid, optimal, weights

MOST = 600  # components kept: a table of 1,024 sites then holds 5 MB
BASES = ("past", "waves", "both")  # enough for worlds with a formula
PROCESSES = ("hybrid", "stationary")  # a second or so to condition a batch on, and for "hybrid" many seconds to learn
EXPERTS = (*BASES, *PROCESSES)
PER_KIND = ("past", "both")  # of which every kind of past fields has its own, all as likely
KIND = "v5 prior"


@dataclass(frozen=True)
class Prior:
    """What past fields say: level and variance (C,); per kind of field mean and components, and those of what waves leave of it."""

    level: Float[Tensor, " C"]
    variance: Float[Tensor, " C"]
    past: tuple[basis.GridFunctions, ...]  # (C, 1 + r) each: the mean, then components times their standard deviation
    rest: tuple[basis.GridFunctions, ...]  # of the kinds that waves leave something of
    mixed: hybrid.Prior | None
    plain: hybrid.Prior | None
    log_weight: Float[Tensor, " E"]  # of the EXPERTS, before any reading
    spread: Float[Tensor, " E"]  # by which the deviations that they claim are multiplied

    @property
    def channels(self) -> int:
        return len(self.level)

    def process(self, name: str) -> hybrid.Prior | None:
        """The Gaussian processes of an expert of PROCESSES."""
        return self.mixed if name == "hybrid" else self.plain


def has_experts(prior: Prior) -> list[str]:
    """Waves are looked for in fields of one channel; beside components only where these are known to leave something."""
    held = {"past": True, "waves": prior.channels == 1, "both": bool(prior.rest)}
    held |= {name: prior.process(name) is not None for name in PROCESSES}
    return [name for name in EXPERTS if held[name]]


def check_experts(experts: Sequence[str]) -> None:
    """ValueError for a name that is none of EXPERTS."""
    unknown = [name for name in experts if name not in EXPERTS]
    if unknown:
        raise ValueError(f"unknown expert '{unknown[0]}'; known: {', '.join(EXPERTS)}")


def components(past: Float[Tensor, "n C H W"]) -> basis.GridFunctions:
    """The fields' mean, then their principal components times their standard deviation, by falling variance."""
    fit = optimal.decompose(past)
    factor = torch.from_numpy(fit.factor)
    factor = factor[..., :MOST]
    table = torch.cat([torch.from_numpy(fit.mean)[..., None], factor], -1)
    return basis.grid_functions(table.unflatten(1, fit.shape))


def state(prior: Prior) -> dict[str, Tensor]:
    """All of it as tensors, for `restore`."""
    found = {"level": prior.level, "variance": prior.variance, "log_weight": prior.log_weight, "spread": prior.spread}
    for name, tables in (("past", prior.past), ("rest", prior.rest)):
        for i, table in enumerate(tables):
            found |= {_named(name, i): table.values, f"{_named(name, i)}_shape": torch.tensor(table.shape)}
    for name in (name for name in PROCESSES if prior.process(name) is not None):
        found |= {f"{name}.{key}": value for key, value in prior.process(name).state().items()}
    return found


def restore(tensors: Mapping[str, Tensor]) -> Prior:
    """The prior whose `state` this is; numbers kept in single precision are computed with in double."""
    tables = (tuple(_tables(name, tensors)) for name in ("past", "rest"))
    states = ({k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")} for n in PROCESSES)
    processes = [hybrid.restore(its) if its else None for its in states]
    level, variance, log_weight = (tensors[n].double() for n in ("level", "variance", "log_weight"))
    spread = tensors["spread"].double() if "spread" in tensors else torch.ones_like(log_weight)  # files from before it lack it
    return Prior(level, variance, *tables, *processes, log_weight, spread)


def _named(name: str, kind: int) -> str:
    return f"{name}{kind}" if kind else name


def _tables(name: str, tensors: Mapping[str, Tensor]) -> Iterator[basis.GridFunctions]:
    for key in itertools.takewhile(tensors.__contains__, (_named(name, i) for i in itertools.count())):
        yield basis.grid_functions(tensors[key].unflatten(0, tuple(tensors[f"{key}_shape"].tolist())).permute(2, 0, 1, 3))


def load(path: Path | str) -> Prior:
    """The prior in a file of weights; ValueError when it is damaged or foreign."""
    tensors, card = weights.read(path)
    if card.get("kind") != KIND:
        raise ValueError(f"'{path}' holds {card.get('kind')!r}, not {KIND!r}; give a file that `python -m lib train` wrote")
    return restore(tensors)

"""The ten techniques whose combinations make the hundred versions, each as switches of an arm.

A technique is a promise (`claim`, in params/claims.yaml) and what it sets. Two of them follow the length of the run, so switches are a
function of the steps. No two techniques set the same switch: a set of them is their union, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

SPAN = 0.1  # of the run: what the weight average looks back on
LEAST = 0.5  # decay of the average in a run of less than 20 steps
WARMUP = 0.05  # of the run
JOIN = "+"


@dataclass(frozen=True)
class Technique:
    """What a technique is called, does, sets for a run of so many steps, and which claim promises its gain."""

    name: str
    what: str
    switches: Callable[[int], Mapping]
    claim: str


TECHNIQUES = {
    "T1": Technique(
        "reflow",
        "half of the steps train as usual; the frozen model then carries fresh noise to data, and the other half trains on these pairs",
        lambda steps: {"coupling": "reflow"},
        "t01-rectified",
    ),
    "T2": Technique(
        "multi-scale encoding",
        "sin and cos of 1, 2, 4, 8, 16, 32 cycles over the domain, along each axis",
        lambda steps: {"features": "octave", "frequencies": 12},
        "t02-multiscale",
    ),
    "T3": Technique(
        "consistency",
        "the data estimated in one step from two times of the same path shall agree",
        lambda steps: {"consistency": 1.0},
        "t03-consistency",
    ),
    "T4": Technique(
        "frequency loss",
        "the spectrum of the estimated data, a non-uniform Fourier transform over the supervised sites, shall be the truth's",
        lambda steps: {"penalty": "spectrum"},
        "t04-frequency-loss",
    ),
    "T5": Technique(
        "AdaLN",
        "the time scales and shifts the output of every norm instead of being added to the tokens",
        lambda steps: {"conditioning": "adaln"},
        "t05-adaln",
    ),
    "T6": Technique(
        "self-conditioning",
        "the network sees its previous estimate of the data",
        lambda steps: {"self_condition": True},
        "t06-self-conditioning",
    ),
    "T7": Technique(
        "weight average",
        "the answering weights are an exponential average over a tenth of the run",
        lambda steps: {"average": round(max(LEAST, 1 - 1 / (SPAN * steps)), 6)},
        "t07-ema",
    ),
    "T8": Technique(
        "cosine path",
        "y_t = cos(pi t / 2) y_0 + sin(pi t / 2) y_1, with the velocity of that path",
        lambda steps: {"path": "cosine"},
        "t08-schedule",
    ),
    "T9": Technique(
        "clipping and warm-up",
        "gradients clipped to norm 1, the rate rising over a twentieth of the run and falling to zero as a cosine",
        lambda steps: {"clip": 1.0, "warmup": max(1, round(WARMUP * steps)), "schedule": "cosine"},
        "t09-clip-warmup",
    ),
    "T10": Technique(
        "stochastic depth",
        "layers are left out at random while training, the last one in a tenth of the cases, earlier ones less often",
        lambda steps: {"depth_drop": 0.1},
        "t10-stochastic-depth",
    ),
}


def merge(names: Iterable[str], steps: int) -> dict:
    """The switches of a set of techniques for a run of so many steps; ValueError for an unknown one."""
    return {switch: value for name in names for switch, value in known(name).switches(steps).items()}


def known(name: str) -> Technique:
    """The technique of this name, or ValueError."""
    if name not in TECHNIQUES:
        close = get_close_matches(str(name), TECHNIQUES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown technique {name!r}; known: {', '.join(TECHNIQUES)}{hint}")
    return TECHNIQUES[name]


def title(number: int, names: Iterable[str]) -> str:
    """The name of a version: "v13 T1+T2", "v2" without techniques."""
    return f"v{number} {JOIN.join(names)}".strip()


def of(title: str) -> tuple[str, ...]:
    """The techniques in the name of a version; ValueError for an unknown one."""
    names = tuple(title.split()[1].split(JOIN)) if " " in title.strip() else ()
    for name in names:
        known(name)
    return names

"""Views that tell the story of this lab, one sentence each, and views drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lib import data, trained, worlds
from lib.baselines import METHODS as CLASSICAL
from lib.view import EXACT, NAMES, View


@dataclass(frozen=True)
class Story:
    """A view, what to see in it, and whether the explorer of the step dt belongs below."""

    view: View
    says: str
    dt: bool = False


STORIES = {
    "13 readings are enough": Story(
        View(),
        "V5 finds in 13 readings that the field is one wave, and has it to the last digits. Nothing was told to it: the same method kriges "
        "mountains. Pull a reading aside, or take some away, until it fails.",
    ),
    "the 6 dB failure": Story(
        View("separable", "constant", readings=51),
        "What the flow models of the documents reached on this world: 6 dB. It is what the constant 0.5 scores, knowing nothing. The list "
        "beside the maps shows what the same 51 readings are worth.",
    ),
    "the clamp that caps at 15.5 dB": Story(
        View("separable", "oi", readings=51, seed=1, clamp=True),
        "Optimal interpolation solves this world to 150 dB; clamped to [0, 1], as the documents ask, the same answer stands near 15.5 dB, "
        "because the world's values run from -0.5 to 1.5. Take the clamp off.",
    ),
    "the dt curves": Story(
        View("separable", "gp", readings=51),
        "The suspect of the documents: a state-space step dt = 1/length shrinks tenfold from training to evaluation. Below, what that does "
        "to the state's memory and gain; lengthen the sequence.",
        dt=True,
    ),
    "the mean of many samples": Story(
        View("terrain", "gp_matern", readings=51, seed=3),
        "The mean of the posterior: the best answer in decibels, and smoother than any mountain.",
    ),
    "one sample": Story(
        View("terrain", "gp_matern", readings=51, seed=3, show="sample"),
        "One draw from the same posterior: as rough as the truth, and a few decibels worse, since its error is counted twice. A sample is "
        "to be looked at, a mean to be scored.",
    ),
    "a flow forms the field": Story(
        View("radial", EXACT, readings=26, solver="euler", steps=16, show="sample"),
        "The exact velocity of flow matching for the posterior of optimal interpolation: noise at t = 0, a sample at t = 1. Play the path, "
        "then choose Heun: its last stage looks at t = 1, and half of the last step's noise stays.",
    ),
    "the oracle": Story(
        View("plane", "oracle", readings=13, noise=0.2, seed=2),
        "The oracle is told that the field is a sum of sines and fits their numbers: what knowing the formula is worth when readings are "
        "noisy. It is out of contest.",
    ),
    "land in the sea": Story(
        View("sst", "gp", readings=51, seed=1),
        "Monthly sea-surface temperature along the equator in kelvin; grey is land. The deviation is large where nothing was read: add a "
        "reading where it is darkest.",
    ),
}


def surprise(number: int) -> View:
    """The view drawn as this number: any world, a method that answers at once, readings, layout, noise and field."""
    draw = data.generator(number, "surprise")

    def pick(options):
        options = list(options)
        return options[int(torch.randint(len(options), (), generator=draw))]

    world = pick(NAMES)
    quick = [name for name in CLASSICAL if name not in ("constant", "biharmonic", "oracle")]
    measured = worlds.get(world).load is not None
    method = pick([*quick, EXACT, *([] if measured and not trained.flows() else ["v5"])])
    view = View(world, method, pick(data.LAYOUTS), pick((13, 26, 51, 102)), pick((0.0, 0.05, 0.1)), pick(range(20)), solver="euler")
    return view

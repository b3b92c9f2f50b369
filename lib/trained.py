"""What was learned before: V5's priors and flow models from files of weights, or a prior from past fields, once per world.

A file below outputs/reference/weights says on its card (lib/weights.py) what it is: `python -m lib train --world plane --out F` writes a
prior, `keep` a flow model. Cards are read at once, numbers when they are first asked for.
"""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from lib import contest, model, v5, weights, worlds

FOLDER = Path(__file__).parents[1] / "outputs" / "reference" / "weights"
FLOW = "flow model"
QUICK = ("past", "waves")  # experts learned in an instant
_LEARNED: dict[tuple[str, int], v5.Prior] = {}
_LEARNING = threading.Lock()  # whoever asks while another learns waits for it


def cards(kind: str) -> dict[Path, dict]:
    """The cards of this kind in FOLDER by their file of weights, read once; a card that cannot be read counts as none."""
    return _cards(kind, FOLDER)


@functools.cache
def _cards(kind: str, folder: Path) -> dict[Path, dict]:
    found = {}
    for path in sorted(folder.glob("**/*.json")):
        try:
            card = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(card, dict) and card.get("kind") == kind and path.with_suffix(".safetensors").is_file():
            found[path.with_suffix(".safetensors")] = card
    return found


def flows() -> list[str]:
    """The versions of lib/model.py whose trained weights are here."""
    return list(dict.fromkeys(card["version"] for card in cards(FLOW).values() if card.get("version")))


def keep(path: Path, network: model.Model, version: str, world: str, **told) -> str:
    """Write a trained model with the card that `flow` reads; the file's SHA-256."""
    card = {"kind": FLOW, "version": version, "data": world, "channels": network.channels, "config": asdict(network.config), **told}
    _cards.cache_clear()
    return weights.write(path, network.state_dict(), card)


def flow(version: str, world: str) -> model.Model:
    """The version trained on this world; ValueError where no file holds it."""
    files = {card["data"]: path for path, card in cards(FLOW).items() if card.get("version") == version}
    if world not in files:
        have = (
            f"it was trained on {', '.join(files)}: choose that world" if files else f"put its file into {FOLDER.name}/, or choose another"
        )
        raise ValueError(f"no weights of '{version}' trained on '{world}' are here; {have}")
    return _flow(files[world])


@functools.lru_cache(maxsize=4)
def _flow(path: Path) -> model.Model:
    tensors, card = weights.read(path)
    network = model.build(model.ModelConfig(**card["config"]), card["channels"])
    network.load_state_dict(tensors)
    return network.eval()


@functools.lru_cache(maxsize=6)
def past_fields(world: str, count: int) -> Tensor:
    """The fields that methods may learn from: at most as many as the world has."""
    return contest.past_fields(world, min(count, contest.most(world, "train") or count), 0)


def at_hand(world: str, count: int) -> bool:
    """Whether V5's prior of this world needs no learning any more."""
    return (world, count) in _LEARNED or _file(world) is not None


def prior(world: str, count: int) -> v5.Prior:
    """V5's prior: from its file, else learned from past fields (seconds), and kept; without processes where fields have a formula."""
    with _LEARNING:
        if (world, count) not in _LEARNED:
            experts = v5.EXPERTS if worlds.get(world).formula is None else v5.BASES
            path = _file(world)
            _LEARNED[world, count] = v5.load(path) if path is not None else v5.learn(past_fields(world, count), experts=experts)
        return _LEARNED[world, count]


@functools.lru_cache(maxsize=32)
def quick_prior(world: str, count: int) -> v5.Prior:
    """What V5 knows at once: the components of past fields, and to look for waves."""
    return v5.learn(past_fields(world, count), torch.Generator().manual_seed(0), QUICK)


def _file(world: str) -> Path | None:
    return next((path for path, card in cards(v5.KIND).items() if card.get("data") == world), None)

"""What a sweep runs, declared in one YAML file: a base, a rule that varies it, and seeds. Everything is checked before anything runs.

    name: rates                                     default: the file's name
    arms: {version: v2-fixed, world: plane, steps: 400}          what all arms share; or
    notebook: 04_fixes  (profile: cpu, common: {...})            a notebook and its parameters
    seeds: 3                                        0, 1, 2; or a list
and one rule
    grid: {rate: [1.0e-3, 3.0e-4], layers: [2, 4]}               every combination
    list: {wide: {width: 256}, deep: {layers: 8}}                these, by name
    random: {count: 20, seed: 0, draw: {rate: {low: 1.0e-4, high: 1.0e-2, log: true}, head: [attention, residual]}}
    factorial: {factors: {wide: {width: 256}, deep: {layers: 8}}, half: false}         every subset of factors, or half of them
    techniques: {first: 2, sets: [{size: 0}, {size: 1}, {size: 3, count: 35}]}         sets of techniques, numbered from v<first>

Sets of techniques with a count are a balanced choice: one after another, the set whose pairs, then whose members were taken least so far,
the first in order where several are equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from pathlib import Path

import torch

from lib import arms, attribution, data, model, params, techniques, train

MOST = 1_000_000  # tasks; a design is held in memory
LISTED = 20  # names in a message, where one is close
RULES = ("grid", "list", "random", "factorial", "techniques")
KEYS = {"arms": ("name", "arms", "seeds", *RULES), "notebooks": ("name", "notebook", "profile", "common", "seeds", *RULES)}
NOTEBOOKS = Path("notebooks")
DEFAULTS = {f.name: f.default for part in (model.ModelConfig, train.TrainConfig, arms.Judging) for f in fields(part)}
NAMES = {"version": "v2-fixed", "world": "separable", **DEFAULTS}


@dataclass(frozen=True)
class Book:
    """One run of a notebook: its name and the parameters that differ from its defaults."""

    notebook: str
    parameters: Mapping

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the notebook and these parameters."""
        return _hash([self.notebook, dict(self.parameters)])


@dataclass(frozen=True)
class Design:
    """Named tasks of one kind ("arms": arms.Arm, "notebooks": Book), seed by seed; the hash leaves seeds out, so more may be added."""

    name: str
    kind: str
    tasks: Sequence[tuple[str, arms.Arm | Book]]
    hash: str
    rule: str = ""  # one of RULES

    def __len__(self) -> int:
        return len(self.tasks)

    def limited(self, n: int) -> Design:
        """The first n tasks of the same design."""
        if n < 1:
            raise ValueError(f"a design is limited to at least one task, got {n}")
        return replace(self, tasks=self.tasks[:n])


def load(path: Path | str, overrides: Mapping | None = None, root: Path | str | None = None) -> Design:
    """The design of a file, its base and seeds replaced by `overrides`; ValueError in one line that names the file and what is wrong."""
    path = Path(path)
    try:
        return build(params.read(path), overrides or {}, path.stem, Path(root) if root else Path(__file__).parents[1])
    except ValueError as error:
        text = " ".join(str(error).split())
        raise ValueError(text if text.startswith(params.shown(path)) else f"{params.shown(path)}: {text}") from None


def build(given: Mapping, overrides: Mapping, name: str, root: Path) -> Design:
    """The design of a mapping as `load` reads it; ValueError."""
    kind = "notebooks" if "notebook" in given else "arms"
    for key in given:
        _among("key", key, KEYS[kind])
    rules = [rule for rule in RULES if rule in given]
    if len(rules) != 1:
        raise ValueError(f"needs one of the rules {', '.join(RULES)}; given: {', '.join(rules) or 'none'}")
    overrides = dict(overrides)
    seeds = _seeds(overrides.pop("seeds", given.get("seeds", 1)))
    base = _mapping(given.get("arms" if kind == "arms" else "common"), "arms" if kind == "arms" else "common", empty=True)
    make = _arm_maker({**base, **overrides}) if kind == "arms" else _book_maker(given, {**base, **overrides}, root)
    steps = make("steps") or 0
    variants = _RULES[rules[0]](_mapping(given[rules[0]], rules[0]), steps, len(seeds))
    if not variants:
        raise ValueError(f"the design is empty: {rules[0]} gives no variant; name at least one")
    for switch in overrides:
        if any(switch in chosen for chosen in variants.values()):
            raise ValueError(f"{switch!r} is varied by the rule {rules[0]!r}, so it cannot be set for all; change it in the file")
    tasks = [(title, make(chosen, seed)) for seed in seeds for title, chosen in variants.items()]
    seedless = [(title, make(chosen, 0).id) for title, chosen in variants.items()]
    return Design(str(given.get("name", name)), kind, tasks, _hash(seedless), rules[0])


# ---- from switches to tasks ----


def _arm_maker(base: Mapping):
    """A function (switches, seed) -> Arm on top of a base; called with a name, it says the base's value."""
    base = {**{name: NAMES[name] for name in ("version", "world")}, **_typed(base)}

    def make(switches: Mapping | str, seed: int = 0) -> object:
        if isinstance(switches, str):
            return base.get(switches, NAMES[switches])
        return arms.arm(**{**base, **_typed(switches), "seed": seed})

    return make


def _typed(switches: Mapping) -> dict:
    """The switches of an arm with their types; ValueError for an unknown name or a value of another type."""
    found = {}
    for name, value in switches.items():
        if name == "seed":
            raise ValueError("'seed' is no switch of a design; give `seeds`")
        default = NAMES[_among("parameter", name, NAMES)]
        if isinstance(default, float) and isinstance(value, str | int) and not isinstance(value, bool):
            try:
                value = float(value)  # YAML reads 1e-4 as a string
            except ValueError:
                pass
        kinds = (int, str) if name == "queries" else (type(default),)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name} is {value!r}; give a {' or '.join(kind.__name__ for kind in kinds)}, for example {default!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; give a finite number")
        found[name] = value
    return found


def _book_maker(given: Mapping, base: Mapping, root: Path):
    """A function (parameters, seed) -> Book on top of a profile's file and a base."""
    if given.get("seeds") is not None and "seed" in base:
        raise ValueError("'seed' is no parameter of a design; give `seeds`")
    name = str(given["notebook"])
    found = sorted(path.stem for path in (root / NOTEBOOKS).glob("*.ipynb"))
    path = root / NOTEBOOKS / f"{_among('notebook', name, found)}.ipynb"
    file = None
    if "profile" in given:
        file = params.profile_folder(root / "params", str(given["profile"])) / f"{name}.yaml"
    base = {**(params.read(file) if file else {}), **base}
    params.validate(path, dict(base), "common")

    def make(chosen: Mapping | str, seed: int = 0) -> object:
        if isinstance(chosen, str):
            return base.get(chosen)
        return Book(name, params.validate(path, {**base, **chosen, "seed": seed}, "the design"))

    return make


# ---- rules: name -> switches ----


def grid(given: Mapping, steps: int, seeds: int) -> dict[str, dict]:
    """Every combination of the listed values, named by them."""
    for name, values in given.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {name} is {values!r}; give a list of values")
    _fits(math.prod(len(values) for values in given.values()), seeds)
    return _named([dict(zip(given, chosen, strict=True)) for chosen in product(*given.values())])


def listed(given: Mapping, steps: int, seeds: int) -> dict[str, dict]:
    """The variants as they are given, by name."""
    _fits(len(given), seeds)
    return {str(name): _mapping(switches, f"list: {name}", empty=True) for name, switches in given.items()}


def drawn(given: Mapping, steps: int, seeds: int) -> dict[str, dict]:
    """`count` variants whose values are drawn: from a list, or between low and high (log: evenly in the logarithm; whole: integers)."""
    _only("random", given, ("count", "seed", "draw"))
    count, ranges = _whole(given.get("count"), "random: count"), _mapping(given.get("draw"), "random: draw")
    _fits(count, seeds)
    generator = data.generator(_whole(given.get("seed", 0), "random: seed", 0), "design")
    found = [{name: _draw(name, what, generator) for name, what in ranges.items()} for _ in range(count)]
    return {f"{place}: {name}": chosen for place, (name, chosen) in enumerate(zip(map(_label, found), found, strict=True), 1)}


def factorial(given: Mapping, steps: int, seeds: int) -> dict[str, dict]:
    """Every subset of the factors, or with `half` those with an even number of them."""
    _only("factorial", given, ("factors", "half"))
    factors = _mapping(given.get("factors"), "factorial: factors")
    factors = {str(name): _mapping(switches, f"factorial: {name}") for name, switches in factors.items()}
    half = given.get("half", False)
    if not isinstance(half, bool):
        raise ValueError(f"factorial: half is {half!r}; give true or false")
    _fits(2 ** (len(factors) - half), seeds)
    return attribution.fraction(factors, min(5, len(factors))) if half else attribution.factorial(factors)


def sets(given: Mapping, steps: int, seeds: int) -> dict[str, dict]:
    """Sets of techniques, numbered: all of a size, or a balanced choice of `count`."""
    _only("techniques", given, ("first", "sets", "among"))
    among = given.get("among", list(techniques.TECHNIQUES))
    if not isinstance(among, list) or not among:
        raise ValueError(f"techniques: among is {among!r}; give a list of techniques")
    for name in among:
        techniques.known(name)
    chosen: list[tuple[str, ...]] = []
    for block in given.get("sets") or []:
        block = _mapping(block, "techniques: sets")
        _only("techniques: sets", block, ("size", "count"))
        size = _whole(block.get("size"), "techniques: size", 0)
        chosen += balanced(among, size, _whole(block["count"], "techniques: count") if "count" in block else None, chosen)
    _fits(len(chosen), seeds)
    first = _whole(given.get("first", 1), "techniques: first", 0)
    return {techniques.title(first + place, names): techniques.merge(names, steps) for place, names in enumerate(chosen)}


_RULES = {"grid": grid, "list": listed, "random": drawn, "factorial": factorial, "techniques": sets}


def balanced(names: Sequence[str], size: int, count: int | None, before: Sequence[tuple] = ()) -> list[tuple[str, ...]]:
    """All sets of `size` names in order, or `count` of them such that pairs, then names, occur as equally often as they can.

    Sets in `before` count as taken, and are not taken again. ValueError where there are fewer than `count`.
    """
    left = [chosen for chosen in combinations(names, size) if chosen not in set(before)]
    if count is None:
        return left
    if count > len(left):
        raise ValueError(f"techniques: {count} sets of size {size} are asked for, there are {len(left)}")
    seen, taken = Counter(part for chosen in before for part in _parts(chosen)), []
    for _ in range(count):
        best = min(left, key=lambda chosen: _crowded(seen, chosen))
        left.remove(best)
        taken.append(best)
        seen.update(_parts(best))
    return taken


def _parts(chosen: tuple[str, ...]) -> list:
    """The pairs in a set and its members."""
    return [*combinations(chosen, 2), *chosen]


def _crowded(seen: Counter, chosen: tuple[str, ...]) -> tuple[int, int]:
    """How often the pairs, then the members, of a set were taken, large counts weighing more."""
    return sum(seen[pair] ** 2 for pair in combinations(chosen, 2)), sum(seen[name] ** 2 for name in chosen)


# ---- checks ----


def _draw(name: str, what: object, generator: torch.Generator) -> object:
    """One value of a list or a range."""
    if isinstance(what, list) and what:
        return what[int(torch.randint(len(what), (), generator=generator))]
    what = _mapping(what, f"random: {name}")
    _only(f"random: {name}", what, ("low", "high", "log", "whole"))
    low, high = (what.get(end) for end in ("low", "high"))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in (low, high))
    if not numbers or low > high or (what.get("log") and low <= 0):
        raise ValueError(f"random: {name} is {what!r}; give a list, or numbers low <= high (positive with log: true)")
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    if what.get("whole"):
        share, low, high = share, low, high + 1 - 1e-9
    value = math.exp(math.log(low) + share * math.log(high / low)) if what.get("log") else low + share * (high - low)
    return math.floor(value) if what.get("whole") else float(f"{value:.6g}")


def _named(found: Sequence[Mapping]) -> dict[str, dict]:
    return {_label(chosen): dict(chosen) for chosen in found}


def _label(chosen: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in chosen.items())


def _fits(variants: int, seeds: int) -> None:
    if variants * seeds > MOST:
        raise ValueError(f"the design has {variants * seeds:,} tasks, more than {MOST:,}; vary less, or draw with the rule random")


def _seeds(given: object) -> list[int]:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return list(range(given))
    whole = isinstance(given, list) and given and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in given)
    if not whole or len(set(given)) < len(given):
        raise ValueError(f"seeds is {given!r}; give how many (at least 1), or a list of different whole numbers from 0")
    return list(given)


def _whole(given: object, what: str, least: int = 1) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise ValueError(f"{what} is {given!r}; give a whole number from {least}")
    return given


def _mapping(given: object, what: str, empty: bool = False) -> dict:
    if given is None and empty:
        return {}
    if not isinstance(given, dict) or not (given or empty):
        raise ValueError(f"{what} is {given!r}; write a mapping of names to values")
    return given


def _only(what: str, given: Mapping, known: Sequence[str]) -> None:
    for key in given:
        _among(f"key of {what}", key, known)


def _among(what: str, given: object, known) -> str:
    if given not in known:
        hint = params.suggestion(str(given), known)
        listed = "" if hint and len(known) > LISTED else f"; known: {', '.join(known)}"
        raise ValueError(f"unknown {what} {given!r}{hint}{listed}")
    return given


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

"""From a table of readings to a field: mean, standard deviation, coherent samples, and how far to trust them.

    readings.csv -> sites in [-1, 1]^2, values scaled -> a method of lib/baselines.py, or a trained V5 -> the answer in the readings' unit
Values are scaled so that the methods see fields as they know them: past fields by their range to [0, 1]; without any, the readings' mean to
the mean and their deviation to the deviation of a sine between 0 and 1, so that the answer does not depend on the unit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

from lib import baselines, data, delivery, frame, intake, perfield, v5
from lib.params import shown, suggestion

KERNELS = {"gp": ("rbf", "matern"), "gp_rbf": ("rbf",), "gp_matern": ("matern",)}
LEARNED = ("oi", "pod", "hybrid", "v5")  # what learns from past fields knows the square they lie on
FEWEST_FIELDS = 10  # past fields below which their covariance says little
FOLDS = 10
AT_ONCE = 50_000_000  # readings x nodes of one question: 400 MB in float64
NORMAL_90 = 1.6448536269514722  # half-width of a Gaussian's central 90 % in standard deviations

ONE_NUMBER, OF_THE_FIELD = "one number: the error at readings left out", "of the field, given the readings"

OPTIONS = ("method", "weights", "grid", "like", "samples", "seed", "noise", "column", "variable")
Solver = Callable[[data.Batch], data.Prediction]


def run(
    readings: str | Path,
    out: str | Path,
    method: str = "auto",
    past: str | Path | None = None,
    weights: str | Path | None = None,
    grid: str | None = None,
    like: str | Path | None = None,
    samples: int = 16,
    seed: int = 0,
    noise: str | float = "auto",
    column: str = "value",
    variable: str | None = None,
) -> list[tuple[str, str]]:
    """Write the field behind the readings to out (.nc, with .png and .html beside it); what was done, as (heading, words)."""
    out = delivery.check(out)
    if samples < 0:
        raise ValueError(f"--samples is {samples}; give 0 or more")
    found = intake.read(readings, column)
    history = None if past is None else intake.past_fields(past, found, variable)
    name, why = choose(method, weights, history)
    if weights is not None:
        history = intake.learned(weights, found)
    error = _noise(noise, name)
    target, found = intake.target_grid(found, history, grid, like, str(readings))
    place = frame.indexed(history.grid if history else target) if name in LEARNED else frame.even(target, found.places)
    scale = intake.Scale.of(found, history)
    error = None if error is None else error / scale.span
    solver = _solver(name, weights, history, error)
    s, z, q = place(found.places), scale.down(found.values), place(target.nodes())
    answer = _ask(solver, s, z, q)
    coarse = functools.partial(_coarse, solver, s, z, place, target)
    drawn = _draw(answer, samples, seed, target, coarse) if samples else None
    left, sure = _left_out(name, solver, (s, z, q), seed, history, error)
    mean, std = answer.mean[0, :, 0].numpy(), np.full(len(q), _typical(left, z)) if answer.std is None else answer.std[0, :, 0].numpy()
    field = delivery.Field(
        grid=target,
        column=column,
        unit=found.units[2] or (history.unit if history else ""),
        units=found.units[:2],
        mean=scale.up(mean).reshape(target.shape),
        std=scale.span * std.reshape(target.shape),
        samples=None if drawn is None else scale.up(drawn).reshape(-1, *target.shape),
        places=found.places,
        values=found.values,
        left_out=scale.up(left),
        method=name,
        why=why,
        spread=ONE_NUMBER if answer.std is None else OF_THE_FIELD,
    )
    field = field.masked(_outside(history, target)) if history else field
    lines = [("method", f"{name}: {why}"), ("readings", _remark(found, history)), *_facts(field)]
    lines.append(("left out", _judged(field, found.spread, None if sure is None else scale.span * sure, name in KERNELS)))
    paths = delivery.write(out, field, lines, f"python -m lib reconstruct {readings}")
    return [*lines, ("written", ", ".join(shown(path) for path in paths))]


# ---- which method, and its answer ----


def choose(method: str, weights: str | Path | None, past: intake.Past | None) -> tuple[str, str]:
    """A method's name and why it is this one; ValueError for one that is unknown or lacks what it learns from."""
    known = ("auto", "v5", *baselines.METHODS)
    if method not in known:
        raise ValueError(f"unknown method '{method}'{suggestion(method, known)}; known: {', '.join(known)}")
    if weights is not None and method not in ("auto", "v5"):
        raise ValueError(f"--weights belong to v5, and --method is {method}; leave one of them out")
    if weights is not None and past is not None:
        raise ValueError("--weights and --data both say what is known of past fields; give one of them")
    if weights is not None:
        if not Path(weights).is_file():
            raise ValueError(f"--weights '{weights}' is not a file; give a .safetensors file of a trained v5")
        return "v5", "its weights are given"
    if method in LEARNED and past is None:
        raise ValueError(f"'{method}' learns from past fields; give them with --data, or use gp, which needs none")
    if method != "auto":
        return method, "chosen by --method"
    if past is None:
        return "gp", "no past fields to learn from (--data)"
    if len(past.fields) < FEWEST_FIELDS:
        return "gp", f"{len(past.fields)} past fields are too few for their covariance"
    return "v5", f"it learns from {len(past.fields)} past fields"


def _solver(name: str, weights: str | Path | None, past: intake.Past | None, noise: float | None) -> Solver:
    fields = None if past is None else past.fields
    if name == "v5":
        model = v5.load(weights) if weights is not None else v5.learn(fields)
        return lambda batch: v5.predict(model, batch)
    if name in KERNELS:
        return lambda batch: baselines.gp(batch, fields, KERNELS[name], noise)
    return lambda batch: baselines.get(name)(batch, fields)


def _noise(noise: str | float, method: str) -> float | None:
    """The readings' standard deviation in their unit; None where it is to be found."""
    if noise == "auto":
        return None
    try:
        value = float(noise)
    except ValueError:
        value = np.nan
    if not 0 <= value < np.inf:
        raise ValueError(f"--noise is '{noise}'; give auto, or the standard deviation of the readings' errors in their unit")
    if method not in KERNELS:
        raise ValueError(f"--noise {value:g} goes with --method {', '.join(KERNELS)}; {method} finds the noise itself: leave it at auto")
    return value


def _batch(s: np.ndarray, z: np.ndarray, q: np.ndarray) -> data.Batch:
    return data.readings(*(torch.from_numpy(np.ascontiguousarray(a))[None] for a in (s, z[:, None], q)))


def _ask(solver: Solver, s: np.ndarray, z: np.ndarray, q: np.ndarray) -> data.Prediction:
    """The answer at the queries; many readings at many nodes in parts, and then without samples."""
    step = max(1, AT_ONCE // max(len(s), 1))
    if len(q) <= step:
        return solver(_batch(s, z, q))
    parts = [solver(_batch(s, z, q[i : i + step])) for i in range(0, len(q), step)]
    std = None if parts[0].std is None else torch.cat([part.std for part in parts], 1)
    return data.Prediction(torch.cat([part.mean for part in parts], 1), std, _too_many if parts[0].draw else None)


def _too_many(count: int, generator: torch.Generator):
    raise ValueError("too many nodes for samples")


def _draw(answer: data.Prediction, count: int, seed: int, target: frame.Grid, coarse: Callable) -> np.ndarray | None:
    """Coherent samples (K, M); where nodes are too many for the method, drawn on a coarser grid and carried over.

    What is carried over is the deviation from the mean in units of the standard deviation, by cubic interpolation.
    """
    if answer.draw is None:
        return None
    try:
        return answer.samples(count, data.generator(seed, "samples"))[:, 0, :, 0].numpy()
    except ValueError:
        few, rough = coarse()
    drawn = rough.samples(count, data.generator(seed, "samples"))[:, 0, :, 0].numpy()
    mean, std = rough.mean[0, :, 0].numpy(), rough.std[0, :, 0].numpy()
    deviation = (drawn - mean) / np.maximum(std, 1e-3 * std.max())
    fine = np.stack([_carried(few, d, target) for d in deviation])
    return answer.mean[0, :, 0].numpy() + answer.std[0, :, 0].numpy() * fine


def _coarse(solver: Solver, s: np.ndarray, z: np.ndarray, place: frame.Place, target: frame.Grid) -> tuple[frame.Grid, data.Prediction]:
    """The answer on about frame.NODES nodes of the same extent."""
    shrink = (frame.NODES / (target.shape[0] * target.shape[1])) ** 0.5
    few = target.of(tuple(min(n, max(4, int(n * shrink))) for n in target.shape))
    return few, solver(_batch(s, z, place(few.nodes())))


def _carried(few: frame.Grid, values: np.ndarray, target: frame.Grid) -> np.ndarray:
    up = -1 if few.y[0] > few.y[-1] else 1
    by = RegularGridInterpolator((up * few.y, few.x), values.reshape(few.shape), method="cubic", bounds_error=False, fill_value=None)
    return by(target.nodes()[:, ::-1] * (up, 1))


def _outside(past: intake.Past, target: frame.Grid) -> np.ndarray:
    """Nodes (H, W) where no past field has a value, such as land in a map of the sea."""
    node = frame.on_grid(past.grid.shape, frame.indexed(past.grid)(target.nodes()))
    return ~past.known[node].reshape(target.shape)


# ---- how far to trust it ----


def _left_out(name: str, solver: Solver, sites: tuple, seed: int, past: intake.Past | None, noise: float | None) -> tuple:
    """What the method says at each reading without it: mean (N,), standard deviation (N,) or None; NaN for a single reading.

    The Gaussian process in closed form; any other method is fitted again for each of at most FOLDS parts of the readings.
    """
    s, z, q = sites
    if len(s) < 2:
        return np.full(len(s), np.nan), None
    if name in KERNELS:
        answer = baselines.gp_left_out(_batch(s, z, s), None if past is None else past.fields, KERNELS[name], noise)
        return answer.mean[0, :, 0].numpy(), answer.std[0, :, 0].numpy()
    order = torch.randperm(len(s), generator=data.generator(seed, "folds")).numpy()
    mean, std = np.full(len(s), np.nan), np.full(len(s), np.nan)
    for part in np.array_split(order, min(FOLDS, len(s))):
        rest = np.setdiff1d(order, part)
        if name == "biharmonic":  # it paints whole grids: take the node nearest to the reading
            near = np.array([((q - site) ** 2).sum(1).argmin() for site in s[part]])
            mean[part] = solver(_batch(s[rest], z[rest], q)).mean[0, near, 0].numpy()
            continue
        answer = solver(_batch(s[rest], z[rest], s[part]))
        mean[part] = answer.mean[0, :, 0].numpy()
        if answer.std is not None:
            std[part] = answer.std[0, :, 0].numpy()
    return mean, None if np.isnan(std).any() else std


def _typical(left: np.ndarray, z: np.ndarray) -> float:
    """The root mean square error at readings left out; for a single reading the deviation of an unseen field."""
    error = (left - z)[np.isfinite(left)]
    return float(np.sqrt((error**2).mean())) if len(error) else perfield.DEFAULT_STD


def _remark(found: intake.Sites, past: intake.Past | None) -> str:
    """One line on the readings, and on what stands in for their deviation where they have none."""
    if found.differ or past:
        return found.told
    lack = "one reading has no deviation" if len(found.values) == 1 else "the readings do not differ"
    return f"{found.told}; {lack}, {found.spread:.3g} stands in for it"


def _facts(field: delivery.Field) -> list[tuple[str, str]]:
    unit = f" {field.unit}" * bool(field.unit)
    (across, down), (rows, columns) = field.grid.names, field.grid.shape
    ends = [f"{v:.6g}" for v in (field.grid.y.min(), field.grid.y.max(), field.grid.x.min(), field.grid.x.max())]
    drawn = 0 if field.samples is None else len(field.samples)
    return [
        ("values", f"{field.values.min():.4g} to {field.values.max():.4g}{unit}"),
        ("grid", f"{rows} x {columns}, {down} {ends[0]} to {ends[1]}, {across} {ends[2]} to {ends[3]}"),
        ("mean", f"{np.nanmin(field.mean):.4g} to {np.nanmax(field.mean):.4g}{unit}"),
        ("std", f"at most {np.nanmax(field.std):.3g}{unit} ({field.spread})"),
        ("samples", str(drawn)),
    ]


def _judged(field: delivery.Field, spread: float, std: np.ndarray | None, noise: bool) -> str:
    """The error at readings left out, and how often a 90 % interval held them; noise: whether the interval counts that of the readings."""
    if len(field.values) < 2:
        return "one reading cannot be checked against others"
    error, unit = field.left_out - field.values, f" {field.unit}" * bool(field.unit)
    rms = float(np.sqrt((error**2).mean()))
    words = f"RMS {rms:.3g}{unit}, {100 * rms / spread:.0f} % of the readings' deviation"
    if std is None:
        return words
    held, counted = int((np.abs(error) <= NORMAL_90 * std).sum()), "" if noise else " of the field, without the readings' noise,"
    return f"{words}; 90 % intervals{counted} hold {held} of {len(error)} ({100 * held / len(error):.0f} %)"

"""What V5 on real fields is shown by: one held-out field in its unit, which expert answers, the goals, a user's own files.

Real fields are few, so nothing is drawn twice: a case asks for at most the past and held-out fields that its world has.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray
from torch import Tensor

from lib import contest, data, diagnosis, files, metrics, plots, reconstruct, v5, widgets, worlds
from lib.contest import Case

PANELS = 3
GOALS = {"air": 1.0, "terrain": 0.3, "photos": 0.3}  # dB ahead of the best peer, without noise
ELSEWHERE = -0.3  # dB: on the other worlds, at most this far behind
SHARPER = 0.9  # V5's CRPS over the best peer's
HONEST = {  # what we ask of deviations: least, most, in words
    "coverage90": (0.88, 0.92, "90 % intervals hold 88 to 92 % of the truth"),
    "spread_skill": (0.9, 1.1, "spread over skill 0.9 to 1.1"),
}
DEGREES = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
UPLOADS = ".csv,.nc,.npy,.npz"
TICKS = (-0.8, 0.0, 0.8)  # labels here do not meet those of the panel beside


# ---- cases, and what a table says of them ----


def cases(names: Sequence[str], past: int, fields: int, share: float | None = None, **common) -> list[Case]:
    """All combinations, with no more past and held-out fields than a world has; a share of each world's sites is read, or `readings`."""
    made = [c for name in names for c in contest.cases([name], **common | ({} if share is None else {"readings": (sites(name, share),)}))]
    return [
        replace(c, past=min(past, contest.most(c.world, "train") or past), fields=min(fields, contest.most(c.world, "test") or fields))
        for c in sorted(made, key=lambda c: c.seed)
    ]


def sites(world: str, share: float) -> int:
    """How many that share of the sites with values is, by the mean of some past fields; at least one."""
    some = worlds.get(world).fields(64, generator=data.generator(0, "train"), split="train")
    return max(1, round(share * float(data.valid(some).sum(1).double().mean())))


def methods(names: Sequence[str]) -> dict:
    """V5 and these classical methods, for contest.run."""
    return {"v5": contest.ours()} | {name: contest.classical(name) for name in names}


def facts(case: Case) -> dict:
    """What is asked: sites with values and the share that is read, past and held-out fields, how many dimensions the past ones have."""
    world, past = worlds.get(case.world), contest.past_fields(case.world, case.past, case.seed)
    known = data.valid(past).sum(1).double().mean()
    low, high = (round(float(world.to_units(torch.tensor(v))), 3) for v in (0.0, 1.0))
    return {
        "world": case.world,
        "values": f"{low:.5g} to {high:.5g} {world.unit}".strip() + f", {world.channels} channels" * (world.channels > 1),
        "sites": int(known),
        "readings": case.readings,
        "read (%)": 100 * case.readings / float(known),
        "past fields": case.past,
        "linear dimension": diagnosis.linear_dimension(past),
        "held out": case.fields,
    }


def span(world: str) -> float:
    """One in the scaled values, in the world's unit."""
    place = worlds.get(world)
    return float(place.to_units(torch.tensor(1.0, dtype=torch.float64)) - place.to_units(torch.tensor(0.0, dtype=torch.float64)))


def standing(low: float, high: float) -> str:
    """A lead's interval in a word."""
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def judged(table: pd.DataFrame, peers: Sequence[str]) -> list[dict]:
    """Per row of the contest's leads: PSNR, CRPS and coverage of V5 beside the best peer, the word for the lead, and the mean error."""
    leads, sharp = (contest.leads(table, "v5", peers, score) for score in ("psnr", "crps"))
    keys, rows, table = contest.SETTINGS, [], contest.pooled(table)
    mine = table[table.method == "v5"].set_index(keys)
    for (_, one), (_, crps) in zip(leads.iterrows(), sharp.iterrows(), strict=True):
        own, key = mine.loc[tuple(one[keys])], one[keys].to_dict()
        rows.append(
            key
            | {"psnr": (own.psnr, own.psnr_low, own.psnr_high), "best": one.best, "its": one.its}
            | {"lead": (one.lead, one.low, one.high), "standing": standing(one.low, one.high)}
            | {"crps_best": crps.best, "crps_ratio": (crps.ratio, crps.low, crps.high)}
            | {"coverage90": own.coverage90, "spread_skill": own.spread_skill, "error": own.mae * span(one.world)}
            | {"unit": worlds.get(one.world).unit or f"of {span(one.world):.0f}"}
        )
    return rows


def goals(rows: Sequence[Mapping]) -> list[dict]:
    """Each goal, what was measured with its interval where it has one, and whether it is met: the measured number decides."""
    found = []
    for row in rows:
        w, ahead = row["world"], GOALS.get(row["world"], ELSEWHERE)
        first = {"goal": f"{w}: lead of at least {ahead:+.1f} dB over the best peer", "measured": row["lead"]}
        found.append(first | {"met": row["lead"][0] >= ahead})
        sharp = {"goal": f"{w}: CRPS at most {SHARPER} of the best peer's", "measured": row["crps_ratio"]}
        found.append(sharp | {"met": row["crps_ratio"][0] <= SHARPER})
        for score, (least, most, words) in HONEST.items():
            found.append({"goal": f"{w}: {words}", "measured": row[score], "met": least <= row[score] <= most})
    return [row | {"met": "met" if row["met"] else "missed"} for row in found]


def weights(case: Case) -> dict[str, float]:
    """Each expert's weight in V5's answers, mean over the case's fields."""
    prior = contest.prior(case.world, case.past, case.seed)
    found = v5.conditioned(prior, contest.test_batch(case)).shares()
    return {name: float(its.mean()) for name, its in found.items()}  # where waves explain all, no expert after them is asked


def doubt(case: Case) -> tuple[float, float]:
    """V5's mean deviation at the quarter of sites nearest to readings, those themselves left out, and at the farthest quarter."""
    batch = contest.test_batch(case)
    far = torch.cdist(batch.s_qry.double(), batch.s_obs.double()).amin(2)
    std = contest.ours()(case, batch).std.mean(2)
    far, std = (x[batch.y_qry.isfinite().all(2) & (far > 1e-6)] for x in (far, std))
    low, high = far.quantile(torch.tensor([0.25, 0.75], dtype=far.dtype))
    return float(std[far <= low].mean()), float(std[far >= high].mean())


# ---- pictures ----


def typical(table: pd.DataFrame, world: str) -> int:
    """The held-out field of V5's median PSNR."""
    found = table[(table.world == world) & (table.method == "v5")].iloc[0].psnr_fields
    return int(np.argsort(found)[len(found) // 2])


def picture(case: Case, peer: str, field: int) -> go.Figure:
    """One held-out field: truth with readings, V5's answer and the peer's, their errors and V5's deviation, in the world's unit."""
    batch = contest.test_batch(case)[field : field + 1]
    mine, its = contest.ours()(case, batch), contest.classical(peer)(case, batch)
    return panels(case.world, batch, {"V5": mine.mean, peer: its.mean}, mine.std)


def panels(world: str, batch: data.Batch, answers: Mapping[str, Tensor], std: Tensor) -> go.Figure:
    """Truth with readings, two answers, their errors, the deviation of the first; colours stand for a colour field's values."""
    place, shape = worlds.get(world), data.shape_of(worlds.get(world).resolution)
    truth = batch.y_qry[:1].double()
    colour = truth.shape[2] > 1
    shown, size = (lambda y: y, 1.0) if colour else (place.to_units, span(world))
    score = {name: float(metrics.score(y, batch, place)["psnr"][0]) for name, y in answers.items()}
    first = f"truth, {int(batch.m_obs[0].sum())} readings"
    values = {first: truth} | {f"{name}, {score[name]:.1f} dB": y.where(truth.isfinite(), torch.nan) for name, y in answers.items()}
    images = {name: _image(shown(y.double()), shape) for name, y in values.items()}
    errors = {f"error of {name}": _image(size * (y.double() - truth).mean(2, keepdim=True), shape) for name, y in answers.items()}
    deviation = {f"deviation of {next(iter(answers))}": _image(size * std.where(truth.isfinite(), torch.nan).mean(2, keepdim=True), shape)}
    kinds = dict.fromkeys(errors, "error") | dict.fromkeys(deviation, "std")
    known = images[first][np.isfinite(images[first])]
    limits = {"low": float(known.min()), "high": float(known.max())}
    look = limits | {"columns": PANELS, "kinds": kinds, "unit": "" if colour else place.unit}
    return plots.field_maps(images | errors | deviation, {first: batch.s_obs[0][batch.m_obs[0]]}, **look)


def _image(y: Tensor, shape: tuple[int, int]) -> np.ndarray:
    return plots.array(y[0]).reshape(*shape, -1)


def lines(tables: Mapping[int, pd.DataFrame], names: Sequence[str]) -> dict[str, tuple]:
    """Curves of PSNR against the numbers that the tables are listed by, for plots.curves."""
    return {name: (list(tables), [float(t[t.method == name].psnr.iloc[0]) for t in tables.values()]) for name in names}


# ---- the user's own files ----


def write_own(folder: Path, case: Case) -> list[Path]:
    """Files as a user has them, from a case of the world `air`: past.nc, grid.nc (where to answer), readings-I.csv of held-out fields."""
    folder.mkdir(parents=True, exist_ok=True)
    world, batch = worlds.get(case.world), contest.test_batch(case)
    (_, lat), (_, lon) = world.axes()
    at = {"lat": ("lat", lat, DEGREES["lat"]), "lon": ("lon", lon, DEGREES["lon"])}
    past = world.to_units(contest.past_fields(case.world, case.past, case.seed)[:, 0].double()).numpy()
    fields = {"temperature": (("time", "lat", "lon"), past, {"units": world.unit})}
    for name, variables in (("past", fields), ("grid", {})):
        xarray.Dataset(variables, at).to_netcdf(folder / f"{name}.nc", engine="h5netcdf")
    paths = [folder / f"readings-{i}.csv" for i in range(case.fields)]
    for path, s, y in zip(paths, batch.s_obs, world.to_units(batch.y_obs[..., 0].double()), strict=True):
        column, row = (((s[:, d] + 1) / 2 * (len(axis) - 1)).round().long().numpy() for d, axis in enumerate((lon, lat)))
        table = pd.DataFrame({"lon": lon[column], "lat": lat[row], f"value [{world.unit}]": y.numpy().round(3)})
        table.to_csv(path, index=False)
    return paths


def own_judged(path: Path, case: Case, field: int) -> dict[str, float]:
    """A reconstruction's root mean square error at readings left out and at all sites, their ratio, and the truth inside its intervals."""
    batch, (answer, left) = contest.test_batch(case)[field : field + 1], _answer(path, case.world)
    error = (answer.mean - batch.y_qry).double()
    left, true = (span(case.world) * float(x.square().mean().sqrt()) for x in (left, error))
    return {"left_out": left, "true": true, "ratio": left / true, "inside": float(metrics.coverage(error, answer.std, 0.9))}


def own_panels(answers: Mapping[str, Path], case: Case, field: int) -> go.Figure:
    """The truth with its readings, two reconstructions in files, their errors, and the deviation of the first."""
    found = {name: _answer(path, case.world)[0] for name, path in answers.items()}
    batch = contest.test_batch(case)[field : field + 1]
    return panels(case.world, batch, {n: its.mean for n, its in found.items()}, next(iter(found.values())).std)


def _answer(path: Path, world: str) -> tuple[data.Prediction, Tensor]:
    """What a reconstruction on the world's own grid says (scaled), and its errors at readings left out."""
    zero = float(worlds.get(world).to_units(torch.tensor(0.0, dtype=torch.float64)))
    with files.open_netcdf(path) as found:
        mean, std, left, value = (torch.from_numpy(found[n].values) for n in ("mean", "std", "reading_left_out", "reading_value"))
    rows = [x.reshape(1, -1, 1) / span(world) for x in (mean - zero, std)]
    return data.Prediction(*rows), (left - value) / span(world)


# ---- explorers: what widgets.explorer needs ----


def controls(names: Sequence[str], past: int, seed: int = 0) -> tuple[dict, Callable[..., tuple[go.Figure, str]]]:
    """World, method, layout, readings, noise and field to truth, answer, error and deviation."""
    lists = {
        "world": widgets.choice("world", names),
        "method": widgets.choice("method", ["v5", *contest.BLIND]),
        **widgets.sensors(),
    }

    def update(world, method, layout, readings, noise, field):
        case, place = cases([world], past, 1, seed=seed)[0], worlds.get(world)
        fields = place.fields(1, generator=data.generator(field, "test"), split="test")
        batch = data.observe(fields, readings, layout, data.generator(field, "sensors"), noise)
        answer = methods([method] * (method != "v5"))[method](case, batch)
        score = {name: float(value[0]) for name, value in metrics.score(answer, batch, place).items()}
        fig = widgets.comparison(batch, answer, fields.shape[-2:], f"{method}, {score['psnr']:.1f} dB")
        size = f"mean error {span(world) * score['mae']:.3g} {place.unit}".rstrip()
        inside = f" · 90 % intervals hold {100 * score['coverage90']:.0f} %" if "coverage90" in score else ""
        return fig, f"PSNR <b>{score['psnr']:.1f} dB</b> · {size}{inside}"

    return lists, update


def upload(example: Sequence[Path]) -> tuple[dict, Callable[..., tuple[go.Figure, str]]]:
    """The user's own files, answered as `python -m lib reconstruct` does; before any is given, those of the example."""
    given = ipywidgets.FileUpload(accept=UPLOADS, multiple=True, description="your files", layout={"width": "200px"})

    def update(files, method):
        with tempfile.TemporaryDirectory() as place:
            paths = [_kept(Path(place), its) for its in files] or example
            try:
                return _reconstructed(paths, Path(place) / "answer.nc", method)
            except ValueError as error:
                raise ValueError(str(error).replace(f"{place}/", "")) from None

    return {"files": given, "method": widgets.choice("method", ["auto", *contest.BLIND[1:], "v5"])}, update


def _kept(place: Path, its: Mapping) -> Path:
    path = place / Path(its["name"]).name
    path.write_bytes(bytes(its["content"]))
    return path


def _reconstructed(paths: Sequence[Path], out: Path, method: str) -> tuple[go.Figure, str]:
    """Mean and deviation as maps, and what was done in words; one .csv is the readings, another file the past fields."""
    readings, past = ([p for p in paths if (p.suffix.lower() == ".csv") == wanted] for wanted in (True, False))
    if len(readings) != 1 or len(past) > 1:
        raise ValueError(
            f"{len(readings)} .csv and {len(past)} other files; give one .csv of readings, and at most one file of past fields"
        )
    told = reconstruct.run(readings[0], out, method, past[0] if past else None, samples=0)
    with files.open_netcdf(out) as found:
        maps = {"answer": found["mean"].values, "its standard deviation": found["std"].values}
        down, across = found["mean"].dims
        axes, seen = ([found[f"{p}{n}"].values for n in (across, down)] for p in ("", "reading_"))
        unit = found["mean"].attrs.get("units", "")
    s = np.stack([_between(x, a) for x, a in zip(seen, axes, strict=True)], 1)
    fig = plots.field_maps(maps, {"answer": s}, kinds={"its standard deviation": "std"}, unit=unit)
    fig.for_each_xaxis(lambda axis: axis.update(tickvals=TICKS, ticktext=_ticks(axes[0]), title_text=across if axis.title.text else ""))
    fig.for_each_yaxis(lambda axis: axis.update(tickvals=TICKS, ticktext=_ticks(axes[1]), title_text=down if axis.title.text else ""))
    return fig, "<br>".join(f"<b>{html.escape(heading)}</b> {html.escape(words)}" for heading, words in told if heading != "written")


def _between(x: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Where coordinates lie between the first node, -1, and the last, 1, node by node."""
    rising = slice(None, None, 1 if nodes[-1] > nodes[0] else -1)
    return np.interp(x, nodes[rising], np.linspace(-1, 1, len(nodes))[rising])


def _ticks(nodes: np.ndarray) -> list[str]:
    return [f"{v:.3g}" for v in np.interp(TICKS, np.linspace(-1, 1, len(nodes)), nodes)]

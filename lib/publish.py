"""Reference results: the runs that README and notebooks quote, copied from their run folders with their provenance.

outputs/reference/<notebook>/ holds metrics.json, figures/ and, where arms were trained, arms.csv of one finished run, nothing else.
outputs/reference/verdicts.json holds one entry per claim of params/claims.yaml, gathered from there. The README's tables are written
from both, between marks, so that no number in them was typed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lib import bench, claims, folders, run
from lib.folders import RunError

BEGIN, END = "<!-- results: written by `python -m lib publish` -->", "<!-- end of results -->"

VERDICTS_BEGIN, VERDICTS_END = "<!-- verdicts: written by `python -m lib publish` -->", "<!-- end of verdicts -->"
BENCH_BEGIN, BENCH_END = "<!-- bench: written by `python -m lib publish` -->", "<!-- end of bench -->"

OURS_BEGIN, OURS_END = "<!-- ours: written by `python -m lib publish` -->", "<!-- end of ours -->"
LEARNING = "11_learning"  # what trained, and what one prior for all worlds is worth
OURS = {"08_v5": "lead", "09_real_fields": "lead_db"}  # notebooks that set V5 against its peers, and what they call the lead

HEADLINES = [  # the claims the README shows, once they have a verdict
    *("dt-is-the-cause", "dt-fixed-repairs", "dt-learned-repairs", "positions-are-the-cause", "six-db-is-the-mean", "v2-baseline"),
    *("all-fixes-v2", "all-fixes-v1", "sigmoid", "clamp", "learned-fourier", "normalisation", "best-combinations", "v4-quality"),
    *("v4-slower", "v4-memory", "v4-cost-per-layer", "v3-morton", "v2-bimamba-best", "five-percent-too-sparse", "more-queries"),
    *("quick-test", "overfit-tells", "old-checkpoints-load"),
]

AT_LENGTH = "full_length"  # the number by system that a run records of the documents' own length
ROWS = [  # what the README shows: words, notebook, name of the number, or of the system of AT_LENGTH
    ("knowing nothing: the constant 0.5", "03_v2_baseline", "constant"),
    ("V1 as described, `dt = 1/length`", "02_v1_dt_bug", f"{AT_LENGTH} length"),
    ("V1 with `dt = 1/1024`; promised 31 to 36", "02_v1_dt_bug", f"{AT_LENGTH} fixed"),
    ("V1 with a learned `dt`; promised 31 to 36", "02_v1_dt_bug", f"{AT_LENGTH} learned"),
    ("V1 with all fixes of the documents; promised 35 to 40", "02_v1_dt_bug", f"{AT_LENGTH} all fixes"),
    ("V2 as described, 51 supervised sites fixed for all fields; promised 35", "04_fixes", f"{AT_LENGTH} as described"),
    ("the same with 200 random ones per step; promised 25 to 30", "04_fixes", f"{AT_LENGTH} random queries"),
    ("V2-fixed, all fixes of the documents but the sigmoid; promised 28 to 35", "04_fixes", f"{AT_LENGTH} documents, all"),
    ("V2 as described, repaired in its sites: readings and supervised ones redrawn", "04_fixes", f"{AT_LENGTH} sites"),
    ("the same, values scaled by their measured mean and deviation", "04_fixes", f"{AT_LENGTH} sites + scaling"),
    ("the same, harmonic coordinate features", "04_fixes", f"{AT_LENGTH} sites + scaling + features"),
    ("V1 as described, a shorter training", "02_v1_dt_bug", "psnr_length"),
    ("V1 with B discretised too", "02_v1_dt_bug", "psnr_discretised"),
    ("V2 as described, at its own 51 sites", "03_v2_baseline", "psnr_alone_global"),
    ("the same V2 on the whole field", "03_v2_baseline", "psnr_global"),
    ("V2 as described, 51 sites fixed per field", "03_v2_baseline", "psnr_field"),
    ("V2 as described, sites redrawn at every step", "03_v2_baseline", "psnr_step"),
    ("the same with 200 supervised sites", "03_v2_baseline", "psnr_200_redrawn"),
    ("V2 as described, trained longer", "04_fixes", "psnr_as described"),
    ("the same, repaired in its sites", "04_fixes", "psnr_sites"),
    ("the same, values scaled by their measured mean and deviation", "04_fixes", "psnr_sites + scaling"),
    ("the same, harmonic coordinate features", "04_fixes", "psnr_sites + scaling + features"),
    ("the same, a residual in the head", "04_fixes", "psnr_sites + scaling + features + head"),
    ("thin plate, no training", "01_data_exploration", "psnr_separable_thin_plate"),
    ("Gaussian process, no training", "01_data_exploration", "psnr_separable_gp_rbf"),
    ("optimal interpolation: the covariance of 3,000 past fields, no training", "01_data_exploration", "psnr_separable_oi"),
]


def publish(profile: str | None, wanted: list[str] | None = None, *, root: Path = run.ROOT, say: Callable[[str], None] = print) -> None:
    """Make the finished runs of a profile the reference, gather the verdicts, rewrite the README's tables; RunError if one is not finished.

    Without a profile only verdicts.json and the tables are written again. ValueError: a run's verdicts do not fit the ledger.
    """
    chosen = run.select(run.available(root), wanted) if profile else []
    for notebook in chosen:
        source = root / "outputs" / profile / notebook.stem
        if not (source / "metrics.json").exists():
            raise RunError(f"{notebook.stem} has no finished run in outputs/{profile}; run `python -m lib run --profile {profile}` first")
    for notebook in chosen:
        source, place = root / "outputs" / profile / notebook.stem, root / "outputs" / "reference" / notebook.stem
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source / "figures", place / "figures")
        if (source / "arms.csv").exists():
            shutil.copy(source / "arms.csv", place / "arms.csv")
        shutil.copy(source / "metrics.json", place / "metrics.json")  # last: a folder without it is no reference
        say(f"{notebook.stem}: outputs/reference holds the run of {folders.read_json(place / 'metrics.json')['provenance']['date']}")
    if (root / claims.LEDGER).exists():
        found = verdicts(root)
        folders.write_json(root / claims.PUBLISHED, found)
        say(", ".join(f"{count} {name}" for name, count in claims.counts(found).items()))
    readme = root / "README.md"
    folders.write(readme, fill(readme.read_text(), root))


def fill(text: str, root: Path = run.ROOT) -> str:
    """The README with its tables between their marks: results, and verdicts, V5 and bench where it has marks for them.

    RunError if the marks of the results are not there, or if a block begins and does not end.
    """
    if BEGIN not in text or END not in text:
        raise RunError(f"README.md has no place for results; it needs the lines {BEGIN} and {END}")
    text = _between(text, BEGIN, END, results(root))
    if VERDICTS_BEGIN in text:
        text = _between(text, VERDICTS_BEGIN, VERDICTS_END, headline(root))
    if OURS_BEGIN in text:
        text = _between(text, OURS_BEGIN, OURS_END, ours(root))
    if BENCH_BEGIN in text:
        measured = sorted((root / "outputs" / "reference" / "bench").glob("*.json"))
        text = _between(text, BENCH_BEGIN, BENCH_END, "\n\n".join(f"{_machine(path)}\n\n{bench.summary(path)}" for path in measured))
    return text


def _machine(path: Path) -> str:
    """The device of a file of figures, and on which machines its sections were measured, the one of most of them first."""
    machines: dict[str, list[str]] = {}
    for section, where in folders.read_json(path).get("provenance", {}).items():
        machines.setdefault(f"{where['gpu'] or where['cpu']}, {where['cpu_count']} cores", []).append(section)
    first, *others = sorted(machines, key=lambda name: -len(machines[name])) or [""]
    rest = "; ".join(f"{' and '.join(machines[name])}: {name}" for name in others)
    return f"`{path.stem}`" + (f": {first}" if first else "") + (f" ({rest})" if rest else "")


def _between(text: str, begin: str, end: str, content: str) -> str:
    """The text with other content between two marks."""
    before, rest = text.split(begin, 1)
    if end not in rest:
        raise RunError(f"README.md: the block that begins with {begin} has no end; it needs the line {end}")
    return f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"


def verdicts(root: Path = run.ROOT) -> dict[str, dict]:
    """An entry for every claim of the ledger, from the published runs; ValueError names the run whose verdict does not fit.

    Where several notebooks judge one claim, a judgement counts before "not testable here", then more seeds, then the later run; the
    other ones stand in `others`.
    """
    ledger = claims.load(root / claims.LEDGER)
    found: dict[str, list[dict]] = {claim_id: [] for claim_id in ledger}
    for path in sorted((root / "outputs" / "reference").glob("[0-9][0-9]_*/metrics.json")):
        content = folders.read_json(path)
        for claim_id, entry in content.get("verdicts", {}).items():
            if claim_id not in ledger:
                raise ValueError(f"{path.parent.name} holds a verdict on {claim_id!r}, which is no claim of {claims.LEDGER}; run it again")
            found[claim_id].append(_published(content, entry, path.parent.name))
    chosen = {claim_id: _first(entries) for claim_id, entries in found.items()}
    return claims.validate(chosen, ledger, claims.PUBLISHED.name)


def _published(content: dict, entry: dict, notebook: str) -> dict:
    """One verdict of a run with where it comes from."""
    p = content["provenance"]
    hardware = p["gpu"] if p["device"] == "cuda" else f"{p['cpu']}, {p['threads']} thread(s)"
    run = {"notebook": notebook, "profile": p["profile"], "date": p["date"], "commit": str(p.get("commit"))}
    return {**claims.OPEN, **entry, "hardware": hardware, "run": run}


def _first(entries: list[dict]) -> dict:
    """The verdict that counts, with the others beside it; an open entry for none."""
    if not entries:
        return dict(claims.OPEN)
    order = lambda e: (e["verdict"] != "not testable here", e["seeds"], e["run"]["date"], e["run"]["notebook"])  # noqa: E731
    best, *rest = sorted(entries, key=order, reverse=True)
    others = [{"notebook": e["run"]["notebook"], "verdict": e["verdict"], "says": e["says"]} for e in rest]
    return best | ({"others": others} if others else {})


def headline(root: Path) -> str:
    """The README's verdicts in Markdown: how many of each, and promised against measured for the claims of HEADLINES that have one."""
    ledger = claims.load(root / claims.LEDGER)
    found = claims.published(root / claims.PUBLISHED, ledger)
    count = claims.counts(found)
    told = ", ".join(f"{number} {name}" for name, number in count.items())
    lines = [f"Of {len(ledger)} claims: {told}. All of them: [10_verdicts](notebooks/10_verdicts.ipynb)."]
    chosen = [name for name in HEADLINES if name in found and found[name]["verdict"] != "open"]
    rows = claims.table({name: found[name] for name in chosen}, ledger)
    if rows:
        lines += ["", "| claim | promised | measured | verdict | from |", "|---|---|---|---|---|"]
    for row in rows:
        words = [row["says"], row["promised"] or "–", row["measured"] or row["found"], row["verdict"], _from(found[row["claim"]])]
        lines.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    places = dict.fromkeys(found[name]["hardware"] for name in chosen)
    worth = "Intervals are 95 %, from a bootstrap over seeds and fields. Where seeds differ more than fields, those of three hold the "
    worth += "true mean in about three cases of four, of two in half of them, and one seed says nothing of other weights."
    return "\n".join(lines + (["", f"Measured on: {'; '.join(places)}. {worth}"] if places else []))


def _from(entry: dict) -> str:
    """What a verdict rests on, with a link to its notebook."""
    seeds, name = entry["seeds"], entry["run"]["notebook"]
    parts = [f"{seeds} seed{'s' if seeds > 1 else ''}", entry["world"], entry["size"], f"[{name[:2]}](notebooks/{name}.ipynb)"]
    return ", ".join(part for part in parts if part)


def results(root: Path) -> str:
    """The table in Markdown: what, PSNR, where from; and a line of provenance for every notebook quoted."""
    found = {
        name: folders.read_json(root / "outputs" / "reference" / name / "metrics.json") for name in dict.fromkeys(n for _, n, _ in ROWS)
    }
    lines = ["| system, world `separable`, 51 of 1,024 values known | training steps x batch | PSNR (dB) | notebook |", "|---|---|---|---|"]
    for words, notebook, key in ROWS:
        metrics, system = found[notebook].get("metrics", {}), key.removeprefix(f"{AT_LENGTH} ")
        value = metrics.get(key) if system == key else metrics.get(AT_LENGTH, {}).get(system)
        if value is not None:
            asked = found[notebook]["provenance"]["parameters"]
            trained = _training(asked, system != key) if system != key or key.startswith("psnr_") else "none"
            told = _span(value) if isinstance(value, dict) else _with_interval(value, metrics.get("intervals", {}), key)
            lines.append(f"| {words} | {trained} | {told} | [{notebook[:2]}](notebooks/{notebook}.ipynb) |")
    if answer := found["04_fixes"].get("metrics", {}).get("answer"):
        lines += ["", answer]
    lines.append("")
    for notebook, content in found.items():
        if content:
            lines.append(f"- {notebook[:2]}: {_origin(content['provenance'])}")
    return "\n".join(lines)


def ours(root: Path) -> str:
    """V5 against the best of its peers on every world, in Markdown, with each notebook's answer and where it was run."""
    lines = ["| world, 5 % of it read without noise | V5, PSNR (dB) | best peer | V5's lead (dB) | notebook |", "|---|---|---|---|---|"]
    told = []
    for notebook, name in OURS.items():
        content = folders.read_json(root / "outputs" / "reference" / notebook / "metrics.json")
        if not content:
            continue
        found, link = content["metrics"], f"[{notebook[:2]}](notebooks/{notebook}.ipynb)"
        for world, lead in found[name].items():
            lines.append(f"| {world} | {_span(found['psnr'][world])} | {found['best_peer'][world]} | {_span(lead)} | {link} |")
        told += ["", found["answer"], "", f"- {notebook[:2]}: {_origin(content['provenance'])}"]
    if content := folders.read_json(root / "outputs" / "reference" / LEARNING / "metrics.json"):
        told += ["", content["metrics"]["answer"], ""]
        told += [*_trained_peers(content), f"- {LEARNING[:2]}: {_origin(content['provenance'])}"]
    return "\n".join(lines + told)


def _trained_peers(content: dict) -> list[str]:
    """PSNR of the peers that were trained, with the time they got, beside V5's and optimal interpolation's; nothing where none was."""
    rows, asked = content["metrics"].get("trained_peers"), content["provenance"]["parameters"]
    if not rows:
        return []
    names = {
        "v5": "V5",
        "oi": "OI",
        "convcnp": f"ConvCNP, {asked['peer_seconds']:g} s",
        "fm-np": f"`fm-np`, {asked['joint_steps']:,} steps x 32",
    }
    names = {name: words for name, words in names.items() if any(name in row for row in rows.values())}
    lines = ["| PSNR (dB), 51 readings | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for case, row in rows.items():
        lines.append(f"| {case} | " + " | ".join(f"{row[name]:.1f}" if name in row else "" for name in names) + " |")
    return [*lines, ""]


def _span(its: dict) -> str:
    """A value with its interval."""
    return f"{its['value']:.1f} [{its['low']:.1f}, {its['high']:.1f}]"


def _with_interval(value: float, intervals: dict, key: str) -> str:
    """A value, with the interval that its run recorded under the same name, with or without psnr_ in front."""
    found = intervals.get(key) or intervals.get(key.removeprefix("psnr_"))
    return f"{value:.1f} [{found['low']:.1f}, {found['high']:.1f}]" if found else f"{value:.1f}"


def _training(parameters: dict, full: bool = False) -> str:
    steps, batch = (parameters.get(f"full_{name}", parameters.get(name)) if full else parameters.get(name) for name in ("steps", "batch"))
    return f"{steps:,} x {batch}" if steps else "none"


def _origin(p: dict) -> str:
    sizes = {name: p["parameters"][name] for name in ("steps", "batch", "fields", "train_fields", "test_fields") if name in p["parameters"]}
    where = p["gpu"] if p["device"] == "cuda" else f"{p['cpu']}, {p['threads']} thread(s)"
    told = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in sizes.items())
    spent = "continued from an earlier run" if p.get("continued_from") else f"{p['seconds'] / 60:.0f} min"
    seeds = p["parameters"].get("seeds", 1)  # which, or how many
    seeds = seeds if isinstance(seeds, int) else len(seeds)
    count = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"profile `{p['profile']}` ({told}, {count}), {where}, {spent}, {p['date'][:10]}"

"""Reference results: only finished runs are published, and the README's numbers are those of the reference."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_notebooks import REPORT, checkout

from lib import bench, claims, publish, run
from lib.folders import RunError

ROOT = Path(__file__).parents[1]


def a_project(folder: Path, finished=True) -> Path:
    """A project with one notebook, a README with marks, and a run of the notebook."""
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "03_v2_baseline.ipynb").write_text("{}")
    (folder / "README.md").write_text(f"above\n{publish.BEGIN}\nold\n{publish.END}\nbelow\n")
    run = folder / "outputs" / "cpu" / "03_v2_baseline"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "splits.png").write_bytes(b"picture")
    (run / "run.ipynb").write_text("{}")
    if finished:
        parameters = {"steps": 1600, "batch": 32, "seed": 0}
        where = {"profile": "cpu", "parameters": parameters, "gpu": None, "device": "cpu", "cpu": "a processor", "threads": 2}
        content = {"metrics": {"constant": 6.04, "psnr_global": 5.4}, "provenance": where | {"seconds": 120.0, "date": "2030-01-01T00:00"}}
        (run / "metrics.json").write_text(json.dumps(content))
    return folder


def test_a_finished_run_becomes_the_reference_and_fills_the_readme(tmp_path):
    root = a_project(tmp_path)
    publish.publish("cpu", root=root, say=lambda text: None)
    reference = root / "outputs" / "reference" / "03_v2_baseline"
    assert sorted(str(p.relative_to(reference)) for p in reference.rglob("*") if p.is_file()) == ["figures/splits.png", "metrics.json"]
    text = (root / "README.md").read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert "| none | 6.0 |" in text and "| 1,600 x 32 | 5.4 |" in text
    assert "steps 1,600, batch 32, one seed" in text and "a processor" in text


def test_the_reference_of_the_verdicts_counts_them_as_they_stand():
    metrics = json.loads((ROOT / "outputs" / "reference" / "10_verdicts" / "metrics.json").read_text())["metrics"]
    count = claims.counts(publish.verdicts(ROOT))
    assert {name: metrics[name.replace(" ", "_")] for name in count} == count, "run 10 with the profile long and publish it last"


@pytest.mark.parametrize("name", ["psnr_global", "global"])
def test_a_value_carries_the_interval_that_its_run_recorded_under_its_name(tmp_path, name):
    root = a_project(tmp_path)
    path = root / "outputs" / "cpu" / "03_v2_baseline" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] |= {"psnr_step": 7.0, "intervals": {name: {"value": 5.4, "low": 4.94, "high": 6.06}}}
    path.write_text(json.dumps(content))
    publish.publish("cpu", root=root, say=lambda text: None)
    text = (root / "README.md").read_text()
    assert "| 1,600 x 32 | 5.4 [4.9, 6.1] |" in text and "| 1,600 x 32 | 7.0 |" in text and "| none | 6.0 |" in text


def test_a_row_at_full_length_names_the_length_it_was_trained_for(tmp_path):
    root = a_project(tmp_path)
    (root / "notebooks" / "04_fixes.ipynb").write_text("{}")
    shutil.copytree(root / "outputs" / "cpu" / "03_v2_baseline", root / "outputs" / "cpu" / "04_fixes")
    path = root / "outputs" / "cpu" / "04_fixes" / "metrics.json"
    content = json.loads(path.read_text())
    content["metrics"] = {"psnr_sites": 12.5, publish.AT_LENGTH: {"sites": {"value": 20.69, "low": 20.07, "high": 21.37}}}
    content["provenance"]["parameters"] = {"steps": 400, "batch": 32, "full_steps": 1600}
    path.write_text(json.dumps(content))
    publish.publish("cpu", root=root, say=lambda text: None)
    text = (root / "README.md").read_text()
    assert "| 1,600 x 32 | 20.7 [20.1, 21.4] |" in text and "| 400 x 32 | 12.5 |" in text


def test_an_unfinished_run_is_refused_and_nothing_changes(tmp_path):
    root = a_project(tmp_path, finished=False)
    with pytest.raises(RunError, match="no finished run in outputs/cpu"):
        publish.publish("cpu", root=root, say=lambda text: None)
    assert "old" in (root / "README.md").read_text() and not (root / "outputs" / "reference").exists()


def test_the_readme_shows_the_reference_as_it_is():
    text = (ROOT / "README.md").read_text()
    assert publish.fill(text) == text, "run `python -m lib publish`"


def test_a_readme_without_marks_is_named():
    with pytest.raises(RunError, match="no place for results"):
        publish.fill("nothing")


LEDGER = """- {id: clamp, source: "002", says: "a clamp | gains", predicted: {gain: [2, 3]}, test: "try"}
- {id: sigmoid, source: "000", says: "a sigmoid gains", predicted: {gain: [2, 5]}, test: "try"}
- {id: other, source: "000", says: "else", predicted: {}, test: "try"}
"""


def a_verdict(verdict="refuted", seeds=1, gain=0.1, **more):
    says = f"A gain of {gain} dB."
    entry = {"verdict": verdict, "says": says, "measured": {"gain": gain}, "interval": {"gain": [gain - 0.1, gain + 0.1]}, "arms": ["a1"]}
    return entry | {"seeds": seeds, "world": "plane", "size": "400 steps x 32"} | more


def a_judged_project(folder: Path, *, verdicts: dict, later: dict | None = None) -> Path:
    """The project with a ledger, a run of 03 that judges claims, and a published run of 04 that does so later."""
    root = a_project(folder)
    (root / "params").mkdir()
    (root / "params" / "claims.yaml").write_text(LEDGER)
    text = (root / "README.md").read_text()
    (root / "README.md").write_text(f"{text}{publish.VERDICTS_BEGIN}\nold\n{publish.VERDICTS_END}\nend\n")
    path = root / "outputs" / "cpu" / "03_v2_baseline" / "metrics.json"
    content = json.loads(path.read_text())
    content["provenance"]["commit"] = "abc"
    path.write_text(json.dumps(content | {"verdicts": verdicts}))
    (path.parent / "arms.csv").write_text("id,psnr\na1,20.0\n")
    if later is not None:
        content["provenance"] |= {"date": "2031-01-01T00:00", "device": "cuda", "gpu": "a GPU"}
        place = root / "outputs" / "reference" / "04_fixes"
        place.mkdir(parents=True)
        (place / "metrics.json").write_text(json.dumps(content | {"metrics": {}, "verdicts": later}))
    return root


def gathered(root: Path) -> dict:
    publish.publish("cpu", root=root, say=lambda text: None)
    return claims.published(root / claims.PUBLISHED, claims.load(root / claims.LEDGER))


def test_a_verdict_is_published_with_its_run_its_arms_and_its_place_in_the_readme(tmp_path):
    root = a_judged_project(tmp_path, verdicts={"clamp": a_verdict()})
    found = gathered(root)
    run = {"notebook": "03_v2_baseline", "profile": "cpu", "date": "2030-01-01T00:00", "commit": "abc"}
    assert found["clamp"] == a_verdict() | {"hardware": "a processor, 2 thread(s)", "run": run}
    assert found["sigmoid"] == claims.OPEN and list(found) == ["clamp", "sigmoid", "other"]
    assert (root / "outputs" / "reference" / "03_v2_baseline" / "arms.csv").read_text() == "id,psnr\na1,20.0\n"
    text = (root / "README.md").read_text()
    assert "Of 3 claims: 0 confirmed, 0 partly, 1 refuted, 0 not testable here, 2 open." in text and text.endswith("\nend\n")
    row = "| a clamp \\| gains | gain 2 to 3 dB | gain 0.100 [0, 0.200] dB | refuted | 1 seed, plane, 400 steps x 32, [03]"
    assert row in text and "a sigmoid gains" not in text and "Measured on: a processor, 2 thread(s)." in text
    assert publish.fill(text, root) == text


@pytest.mark.parametrize(
    ("first", "later", "wins"),
    [
        ({"seeds": 3, "gain": 0.3}, {"seeds": 1, "gain": 0.1}, 0.3),
        ({"seeds": 1, "gain": 0.3}, {"seeds": 1, "gain": 0.1}, 0.1),
        ({"seeds": 1, "gain": 0.3}, {"seeds": 5, "gain": 0.1, "verdict": "not testable here"}, 0.3),
    ],
    ids=["more seeds", "the later run", "a judgement"],
)
def test_of_two_notebooks_on_one_claim_one_counts_and_the_other_stands_beside_it(tmp_path, first, later, wins):
    found = gathered(a_judged_project(tmp_path, verdicts={"clamp": a_verdict(**first)}, later={"clamp": a_verdict(**later)}))["clamp"]
    assert found["measured"]["gain"] == wins
    (beside,) = found["others"]
    assert beside["says"] == f"A gain of {0.4 - wins:.1f} dB." and beside["notebook"] != found["run"]["notebook"]


def test_a_verdict_on_no_claim_of_the_ledger_is_refused_by_its_run(tmp_path):
    root = a_judged_project(tmp_path, verdicts={"clmp": a_verdict()})
    with pytest.raises(ValueError, match="03_v2_baseline holds a verdict on 'clmp'"):
        publish.publish("cpu", root=root, say=lambda text: None)
    assert not (root / claims.PUBLISHED).exists() and "old" in (root / "README.md").read_text()


def test_a_verdict_outside_the_schema_is_not_written(tmp_path):
    root = a_judged_project(tmp_path, verdicts={"clamp": a_verdict(seeds=0)})
    with pytest.raises(ValueError, match="at least one seed"):
        publish.publish("cpu", root=root, say=lambda text: None)
    assert not (root / claims.PUBLISHED).exists()


def test_only_the_blocks_that_begin_are_filled_and_each_must_end(tmp_path):
    root = a_judged_project(tmp_path, verdicts={})
    gathered(root)
    results = f"{publish.BEGIN}\nold\n{publish.END}\n"
    assert "Of 3 claims" not in publish.fill(results, root)
    with pytest.raises(RunError, match="has no end"):
        publish.fill(f"{results}{publish.VERDICTS_BEGIN}\nold\n", root)


def test_the_bench_block_holds_every_device_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "summary", lambda path: f"read {path.name}")
    root = a_judged_project(tmp_path, verdicts={})
    gathered(root)
    place = root / "outputs" / "reference" / "bench"
    place.mkdir(parents=True)
    for device in ("cuda", "cpu"):
        (place / f"{device}.json").write_text("{}")
    where = {"cpu": "A Processor", "gpu": None, "cpu_count": 2}
    kept = {"arm": where, "ssd": where, "sweep": {**where, "cpu": "Another"}}
    (place / "cpu.json").write_text(json.dumps({"provenance": kept}))
    text = f"{publish.BEGIN}\n{publish.END}\n{publish.BENCH_BEGIN}\nold\n{publish.BENCH_END}\n"
    machines = "`cpu`: A Processor, 2 cores (sweep: Another, 2 cores)"
    block = f"{publish.BENCH_BEGIN}\n{machines}\n\nread cpu.json\n\n`cuda`\n\nread cuda.json\n{publish.BENCH_END}"
    assert block in publish.fill(text, root)


def test_a_run_reaches_the_published_verdicts(tmp_path):
    shown = f'display({{"text/plain": "", run_verdict: {{"clamp": {a_verdict()!r}}}}}, raw=True)'
    shown = f"run_verdict = {claims.VERDICT!r}\n{shown}"
    arm = 'import pathlib\nplace = pathlib.Path(folder) / "arms" / "a1"\nplace.mkdir(parents=True)\n'
    arm += '(place / "row.json").write_text(\'{"id": "a1"}\')'
    root = checkout(tmp_path, judge=[REPORT, shown, arm])
    (root / "params" / "claims.yaml").write_text(LEDGER)
    (root / "README.md").write_text(f"{publish.BEGIN}\n{publish.END}\n")
    run.execute("cpu", root=root, say=lambda text: None)
    assert "A gain of 0.1 dB." in (root / "outputs" / "cpu" / "index.html").read_text()
    found = gathered(root)["clamp"]
    assert found["verdict"] == "refuted" and found["run"]["notebook"] == "01_judge"
    assert (root / "outputs" / "reference" / "01_judge" / "arms.csv").read_text() == "id\na1\n"


def test_v5_stands_beside_its_peers_where_the_readme_has_a_place_for_it(tmp_path):
    root, its = tmp_path, {"value": 44.123, "low": 40.0, "high": 48.0}
    place = root / "outputs" / "reference" / "08_v5"
    place.mkdir(parents=True)
    numbers = {"psnr": {"plane": its}, "lead": {"plane": {"value": 1.04, "low": -0.1, "high": 2.0}}, "best_peer": {"plane": "oi"}}
    origin = {"profile": "long", "parameters": {"fields": 64}, "device": "cpu", "cpu": "a processor", "threads": 1, "seconds": 90.0}
    content = {"metrics": {**numbers, "answer": "V5 leads."}, "provenance": {**origin, "date": "2026-11-23T00:00:00+00:00"}}
    (place / "metrics.json").write_text(json.dumps(content))
    marks = f"{publish.BEGIN}\n{publish.END}\n{publish.OURS_BEGIN}\nold\n{publish.OURS_END}\n"
    text = publish.fill(marks, root)
    assert "| plane | 44.1 [40.0, 48.0] | oi | 1.0 [-0.1, 2.0] | [08](notebooks/08_v5.ipynb) |" in text
    assert "V5 leads." in text and "a processor" in text and "old" not in text
    assert publish.fill(text, root) == text
    learned = {"answer": "One prior serves all.", "trained_peers": {"air, noise 0": {"v5": 43.52, "oi": 43.0, "fm-np": 9.97}}}
    asked = {"parameters": {"peer_seconds": 300.0, "joint_steps": 2000}}
    (root / "outputs" / "reference" / publish.LEARNING).mkdir()
    (root / "outputs" / "reference" / publish.LEARNING / "metrics.json").write_text(
        json.dumps({"metrics": learned, "provenance": {**origin, **asked, "date": "2026-11-23T00:00:00+00:00"}})
    )
    text = publish.fill(marks, root)
    assert "One prior serves all." in text and "| PSNR (dB), 51 readings | V5 | OI | `fm-np`, 2,000 steps x 32 |" in text
    assert "| air, noise 0 | 43.5 | 43.0 | 10.0 |" in text and "ConvCNP" not in text

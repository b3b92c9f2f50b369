"""The ledger: strict to read, judged by one rule, recorded as outputs that reach the published file unchanged."""

import csv
import json
import re
from pathlib import Path

import nbformat
import pytest

from lib import claims, folders, ledger, publish, run, widgets

ROOT = Path(__file__).parents[1]
GOOD = '- {id: one, source: "000, 001", says: "it gains", predicted: {gain: [2, null]}, test: "try", prior: 0.5}\n'
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
GIVEN = {"verdict": "partly", "says": "It gains 1 dB.", "measured": {"gain": 1.0}, "interval": {"gain": [0.5, 1.5]}, "seeds": 3}
GIVEN |= {"world": "plane", "size": "400 steps x 32", "hardware": "a processor", "arms": ["abc"]}
GIVEN |= {"run": {"notebook": "04_fixes", "profile": "cpu", "date": "2030-01-01", "commit": "c"}}


def written(folder, text):
    (folder / "claims.yaml").write_text(text)
    return folder / "claims.yaml"


@pytest.fixture
def shown(monkeypatch):
    """What claims.verdict displays."""
    outputs = []
    monkeypatch.setattr(claims, "display", lambda data, raw: outputs.append(data))
    return outputs


def test_the_ledger_of_the_lab_is_read_whole():
    book = claims.load()
    assert len(book) == (ROOT / "params" / "claims.yaml").read_text().count("\n- {id:") and len(book) > 60
    assert book["dt-is-the-cause"].predicted == {"gain": (25, 30)} and book["overfit-tells"].predicted == {"psnr": (40, None)}
    assert book["sigmoid"].source == ("000", "001") and book["ode-steps"].prior == 0.9 and book["v2-length-free"].predicted == {"change": 0}
    assert {name for claim in book.values() for name in claim.source} <= set(claims.SOURCES)


def test_an_entry_keeps_what_it_says(tmp_path):
    assert claims.load(written(tmp_path, GOOD))["one"] == claims.Claim("one", ("000", "001"), "it gains", {"gain": (2, None)}, "try", 0.5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("prior", "priors"), "unknown key 'priors'; did you mean 'prior'"),
        (GOOD + GOOD, "given twice"),
        (GOOD.replace("[2, null]", "[3, 2]"), r"gain: \[3, 2\] is no range"),
        (GOOD.replace("[2, null]", "[null, null]"), "is no range"),
        (GOOD.replace("[2, null]", "[1, 2, 3]"), "is no range"),
        (GOOD.replace("[2, null]", "yes"), "is no range"),
        (GOOD.replace("[2, null]", ".nan"), "is no range"),
        (GOOD.replace('says: "it gains", ', ""), "has no `says`"),
        (GOOD.replace('"000, 001"', "12"), "`source` is 12"),
        (GOOD.replace("0.5", "2"), "prior is 2"),
        (GOOD.replace("{gain: [2, null]}", "[2, 3]"), r"predicted is \[2, 3\]"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line_that_names_file_and_claim(tmp_path, text, told):
    with pytest.raises(ValueError, match=told) as raised:
        claims.load(written(tmp_path, text))
    assert str(raised.value).startswith("claims.yaml, one") and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{}", "- 3", "[", "- {says: x}"])
def test_what_is_no_ledger_is_refused_in_one_line(tmp_path, text):
    with pytest.raises(ValueError, match=r"claims\.yaml") as raised:
        claims.load(written(tmp_path, text))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("claim", "key", "measured", "verdict"),
    [
        ("clamp", "gain", (2.0, 1.0, 3.0), "confirmed"),  # 2 to 3 promised: the lower end is inside
        ("clamp", "gain", (9.0, 8.0, 10.0), "confirmed"),  # more than promised is no breach
        ("clamp", "gain", (2.5, 0.0, 5.0), "partly"),  # but nothing gained is not excluded
        ("clamp", "gain", (1.9, 1.5, 1.99), "partly"),  # a gain, short of the promise
        ("clamp", "gain", (0.5, -1.0, 2.0), "partly"),  # the interval reaches the promise
        ("clamp", "gain", (0.5, 0.0, 1.0), "refuted"),  # neither
        ("clamp", "gain", (-2.5, -3.0, -2.0), "refuted"),
        ("fixed-baseline", "psnr", (28.0, 27.0, 29.0), "confirmed"),
        ("fixed-baseline", "psnr", (40.0, 39.0, 41.0), "confirmed"),
        ("fixed-baseline", "psnr", (27.0, 26.0, 28.0), "partly"),
        ("fixed-baseline", "psnr", (20.0, 19.0, 21.0), "refuted"),  # a level has no direction: 20 dB is not part of 28
        ("quick-test", "psnr", (15.0, 14.0, 16.0), "confirmed"),  # open upwards
        ("v4-slower", "ratio", (20.5, 20.0, 21.0), "confirmed"),  # 5 to 20: over it by no more than the interval
        ("v4-slower", "ratio", (20.5, 20.1, 20.9), "refuted"),
        ("v4-slower", "ratio", (4.0, 3.0, 5.0), "partly"),
        ("v4-slower", "ratio", (4.0, 3.9, 4.1), "refuted"),  # slower than once is no part of five times
        ("six-db-is-the-mean", "psnr", (6.1, 6.0, 6.2), "confirmed"),  # 6 is what rounds to 6
        ("six-db-is-the-mean", "psnr", (20.0, 19.0, 21.0), "refuted"),  # a point is not "at least"
        ("six-db-is-the-mean", "psnr", (5.4, 5.3, 5.5), "partly"),
        ("trivial-table", "random", (10.83, 10.83, 10.83), "confirmed"),  # 10.8 is 10.75 to 10.85
        ("trivial-table", "random", (10.9, 10.9, 10.9), "refuted"),
        ("v2-length-free", "change", (0.0, 0.0, 0.0), "confirmed"),
        ("v2-length-free", "change", (0.1, 0.05, 0.2), "refuted"),  # none means none
        ("v2-length-free", "change", (0.1, 0.0, 0.2), "confirmed"),
    ],
)
def test_the_edges_of_the_rule(claim, key, measured, verdict):
    assert claims.judge(claim, key, *measured) == verdict


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("clmp", "gain", 1, 0, 2), "unknown claim 'clmp'; did you mean 'clamp'"),
        (("clamp", "gian", 1, 0, 2), "did you mean 'gain'"),
        (("h2-converging", "gain", 1, 0, 2), "known: none"),
        (("clamp", "gain", 3, 0, 2), "does not hold the value 3"),
        (("clamp", "gain", float("nan"), 0, 2), "does not hold the value nan"),
    ],
)
def test_what_cannot_be_judged_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        claims.judge(*given)


def test_a_verdict_carries_its_numbers_to_the_runner_and_a_sentence_to_the_reader(shown):
    claims.verdict("clamp", "partly", "It gains <1 dB.", measured={"gain": (0.4, 0.2, 0.6), "n": 3}, arms=["a1"], seeds=2, world="plane")
    (output,) = shown
    assert output["text/plain"].startswith("clamp · partly: It gains <1 dB.") and "promised gain 2 to 3 dB" in output["text/plain"]
    assert "gain 0.400 [0.200, 0.600] dB" in output["text/plain"] and "&lt;1 dB" in output["text/html"]
    entry = {"verdict": "partly", "says": "It gains <1 dB.", "measured": {"gain": 0.4, "n": 3}, "interval": {"gain": [0.2, 0.6]}}
    assert output[run.VERDICT] == {"clamp": entry | {"arms": ["a1"], "seeds": 2, "world": "plane", "size": ""}}
    assert run.VERDICT == claims.VERDICT


@pytest.mark.parametrize(
    ("given", "more", "told"),
    [
        (("clmp", "partly", "x"), {}, "did you mean 'clamp'"),
        (("clamp", "confirm", "x"), {}, "did you mean 'confirmed'"),
        (("clamp", "open", "x"), {}, "unknown verdict 'open'"),
        (("clamp", "partly", " "), {}, "needs a sentence"),
        (("clamp", "partly", "x"), {"interval": {"gain": (1, 2)}}, "without its measured value 'gain'"),
        (("clamp", "partly", "x"), {"measured": {"gain": "2 dB"}}, "give a number"),
        (("clamp", "partly", "x"), {"measured": {"gain": 1}, "interval": {"gain": (1,)}}, "give"),
    ],
)
def test_a_verdict_that_does_not_fit_is_refused_and_not_shown(shown, given, more, told):
    with pytest.raises(ValueError, match=told):
        claims.verdict(*given, **more)
    assert not shown


def test_what_is_not_finite_is_recorded_as_nothing(shown):
    claims.verdict(
        "clamp", "not testable here", "Nothing to measure.", measured={"gain": float("nan")}, interval={"gain": (1.0, float("inf"))}
    )
    assert shown[0][claims.VERDICT]["clamp"]["measured"] == {"gain": None}
    assert shown[0][claims.VERDICT]["clamp"]["interval"] == {"gain": [1.0, None]}


def verdict_output(claim_id, **entry):
    data = {claims.VERDICT: {claim_id: entry}, "text/plain": ""}
    return nbformat.v4.new_output("display_data", data)


def test_the_runner_keeps_the_last_verdict_on_a_claim():
    outputs = [verdict_output("clamp", verdict="partly"), verdict_output("sigmoid", verdict="refuted")]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[*outputs, verdict_output("clamp", verdict="refuted")])])
    assert run.verdicts(book) == {"clamp": {"verdict": "refuted"}, "sigmoid": {"verdict": "refuted"}}


def test_the_table_of_arms_has_every_finished_arm_and_every_column(tmp_path):
    rows = {"a": {"id": "a", "psnr": 1.5, "psnr_fields": [1.0, None]}, "b": {"id": "b", "error": 'loss, "nan"'}}
    for name, row in rows.items():
        folders.write_json(tmp_path / "arms" / name / "row.json", row)
    (tmp_path / "arms" / "c").mkdir()  # still training
    found = list(csv.DictReader(run.arms_table(tmp_path).splitlines()))
    assert [list(row) for row in found] == [["id", "psnr", "psnr_fields", "error"]] * 2
    assert json.loads(found[0]["psnr_fields"]) == [1.0, None] and found[1]["error"] == 'loss, "nan"' and found[1]["psnr"] == ""
    assert run.arms_table(tmp_path / "arms") == ""


def published(**given):
    return {name: dict(claims.OPEN) for name in claims.load()} | given


def test_published_verdicts_are_open_until_there_are_some(tmp_path):
    found = claims.published(tmp_path / "verdicts.json")
    assert list(found) == list(claims.load()) and claims.counts(found)["open"] == len(found)
    folders.write_json(tmp_path / "verdicts.json", published(clamp=GIVEN))
    found = claims.published(tmp_path / "verdicts.json")
    assert found["clamp"] == GIVEN and claims.counts(found)["partly"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "perhaps"},
        {"seeds": 0},
        {"seeds": "3"},
        {"measured": {"gain": "1"}},
        {"interval": {"gain": [1.0]}},
        {"interval": {"psnr": [1.0, 2.0]}},
        {"run": None},
        {"run": GIVEN["run"] | {"date": None}},
        {"arms": [3]},
        {"says": ""},
        {"more": 1},
        {"verdict": "open"},
    ],
    ids=str,
)
def test_a_published_entry_outside_the_schema_is_refused_by_claim(tmp_path, change):
    folders.write_json(tmp_path / "verdicts.json", published(clamp=GIVEN | change))
    with pytest.raises(ValueError, match=r"verdicts\.json, clamp: ") as raised:
        claims.published(tmp_path / "verdicts.json")
    assert "python -m lib publish" in str(raised.value) and "\n" not in str(raised.value)


def test_published_verdicts_and_the_ledger_hold_the_same_claims():
    with pytest.raises(ValueError, match="unknown claim 'clmp'; did you mean 'clamp'"):
        claims.validate(published(clmp=GIVEN), claims.load())
    with pytest.raises(ValueError, match="no entry for the claim 'seeds'"):
        claims.validate({name: dict(claims.OPEN) for name in claims.load() if name != "seeds"}, claims.load())


def test_a_row_of_the_table_shows_the_promised_number_that_was_measured():
    entry = GIVEN | {"measured": {"n": 4, "ratio": 1.5}, "interval": {"ratio": [1.4, 1.6]}}
    row, still = claims.table({"v2-bimamba-best": entry, "quick-test": dict(claims.OPEN)})
    assert row["key"] == "ratio" and (row["value"], row["value_low"], row["value_high"]) == (1.5, 1.4, 1.6)
    assert row["promised"] == "gain 3 to 5 dB, ratio 1.7 times" and "ratio 1.50 [1.40, 1.60] times" in row["measured"]
    assert row["where"] == "3 seeds, plane, 400 steps x 32, 04_fixes"
    assert (still["low"], still["high"], still["value"], still["verdict"], still["measured"]) == (15, None, None, "open", "")


def a_ledger():
    """Rows with every verdict, gains of different sizes and one ratio."""
    given = {
        "clamp": GIVEN,
        "sigmoid": GIVEN | {"verdict": "refuted", "measured": {"gain": -1.0}, "interval": {}},
        "t07-ema": GIVEN | {"verdict": "confirmed", "measured": {"gain": 2.0}, "interval": {}},
        "v4-slower": GIVEN | {"verdict": "confirmed", "measured": {"ratio": 8.0}, "interval": {"ratio": [7.0, 9.0]}},
    }
    return claims.table(published(**given))


def test_the_explorer_filters_and_sorts_figure_and_table():
    box = widgets.explorer(*ledger.controls(a_ledger()))
    moves = {"order": "measured", "source": "T", "verdict": "confirmed", "numbers": "ratios and counts"}
    for name, value in moves.items():
        before = box.figure.to_json(), box.words.value
        box.controls[name].value = value
        assert box.trouble.value == "" and (box.figure.to_json(), box.words.value) != before, name
    box.controls["source"].value = "003"
    assert "1 of 68 claims" in box.words.value and "v4-slower" in box.words.value and "clamp" not in box.words.value
    assert [trace.y[0] for trace in box.figure.data] == ["v4-slower", "v4-slower"]


def test_sorting_puts_the_largest_first_and_the_unmeasured_last():
    rows = ledger.arrange(a_ledger(), "measured")
    assert [row["claim"] for row in rows[:3]] == ["t07-ema", "clamp", "sigmoid"] and all(row["value"] is None for row in rows[5:30])
    verdicts = [row["verdict"] for row in ledger.arrange(a_ledger(), "verdict")]
    assert verdicts == sorted(verdicts, key=(*claims.VERDICTS, "open").index)
    assert ledger.arrange(a_ledger(), "ledger") == a_ledger()


@every_notebook
def test_the_claims_in_a_header_are_in_the_ledger_and_those_it_judges_in_its_header(path):
    book, known = nbformat.read(path, 4), claims.load()
    told = re.search(r"\*\*Claims tested\.\*\*(.*?)\n\n", book.cells[0].source + "\n\n", re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", told[1])) if told else set()
    assert named <= set(known), "the header names a claim that the ledger does not have"
    sources = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    judged = set(run.verdicts(book)) | set(re.findall(r"claims\.verdict\(\s*[\"']([\w-]+)[\"']", sources))
    assert judged <= named, "a verdict on a claim that the header does not name"


def test_the_published_verdicts_are_those_of_the_published_runs():
    assert claims.published() == publish.verdicts(ROOT), "run `python -m lib publish`"


def test_every_arm_a_published_verdict_rests_on_is_in_the_arms_of_its_notebook():
    for claim_id, entry in claims.published().items():
        if entry["arms"]:
            path = ROOT / "outputs" / "reference" / entry["run"]["notebook"] / "arms.csv"
            assert path.exists(), f"{claim_id} names arms, and {path.parent.name} has no arms.csv"
            with path.open(newline="") as file:
                assert set(entry["arms"]) <= {row["id"] for row in csv.DictReader(file)}, claim_id

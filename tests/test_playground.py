"""The playground driven from Python: every control, story and gesture changes what is shown; files and batch give the same view again."""

import asyncio
import io
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from lib import aside, canvas, export, files, model, ode, params, playground, report, serve, stories, trained, view
from lib.view import View

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "00_start_here.ipynb"
PAST = 40


@pytest.fixture(scope="module")
def opened():
    return playground.box(past=PAST)


@pytest.fixture
def box(opened):
    opened.reset()
    opened.before.clear()
    return opened


def other(control):
    """A value that the control does not have."""
    if not hasattr(control, "options"):
        return not control.value
    values = [o[1] if isinstance(o, tuple) else o for o in control.options]
    return values[(values.index(control.value) + 1) % len(values)]


def state(box):
    """Everything the maps show."""
    return box.canvas.pixels, box.canvas.sites, box.canvas.scene["panels"], box.canvas.scene["times"]


@pytest.mark.parametrize("name", [name for name in playground.controls(View()) if name != "story"])
def test_every_control_moves_the_maps(box, name):
    box.controls["method"].value = "exact flow" if name in ("steps", "solver") else "oi"
    if name == "clamp":
        box.controls["world"].value = "separable"
    if name == "layout":
        box.controls["layout"].value = "uniform"
    before, serial = state(box), box.canvas.serial
    control = box.controls[name]
    control.value = other(control)
    assert box.trouble.value == "" and box.canvas.serial == serial + 1
    assert state(box) != before and getattr(box.view, name) == control.value


@pytest.mark.parametrize("name", stories.STORIES)
def test_every_story_opens_and_is_told(box, name):
    box.controls["story"].value = name
    assert box.trouble.value == "" and box.view == stories.STORIES[name].view
    assert stories.STORIES[name].says.split(".")[0].replace("'", "&#x27;") in box.words.value
    assert len(box.stage.children) == stories.STORIES[name].dt
    box.controls["seed"].value = other(box.controls["seed"])
    assert box.trouble.value == ""


def test_stories_say_what_the_numbers_say():
    psnr = {name: view.answer(story.view, PAST).psnr for name, story in stories.STORIES.items() if story.view.method != "v5"}
    assert psnr["the 6 dB failure"] == pytest.approx(6, abs=1.5)
    assert psnr["the clamp that caps at 15.5 dB"] == pytest.approx(15.5, abs=1)
    assert psnr["one sample"] < psnr["the mean of many samples"] - 1
    flow = stories.STORIES["a flow forms the field"].view
    heun = view.answer(View(**flow.told() | {"solver": "heun"}), PAST).psnr
    assert heun < psnr["a flow forms the field"] - 20, "the last stage of Heun looks at t = 1"


def test_a_click_adds_a_click_on_a_reading_removes_a_drag_moves(box):
    first = view.batch(box.view)
    box.canvas.hear({"do": "add", "x": 0.25, "y": -0.5})
    more = view.batch(box.view)
    assert more.s_obs[0, -1].tolist() == [0.25, -0.5] and torch.equal(more.s_obs[:, :-1], first.s_obs)
    for x in (0.1, 0.2, 0.3):
        box.canvas.hear({"do": "drag", "index": 0, "x": x, "y": 0.4, "gesture": "a"})
    box.canvas.hear({"do": "drop", "index": 0, "x": 0.35, "y": 0.4, "gesture": "a"})
    assert box.view.edits == ("add 0.25 -0.5", "move 0 0.35 0.4")
    box.canvas.hear({"do": "drag", "index": 0, "x": -1.0, "y": -1.0, "gesture": "a"})  # arrives after its own end
    assert view.batch(box.view).s_obs[0, 0].tolist() == pytest.approx([0.35, 0.4])
    box.canvas.hear({"do": "remove", "index": 1})
    assert view.batch(box.view).s_obs.shape[1] == 13 and box.trouble.value == ""
    assert box.canvas.scene["panels"][1]["title"] == "13 readings"
    box.undo()
    assert box.view.edits[-1] == "move 0 0.35 0.4"
    box.undo()
    assert box.view.edits == ("add 0.25 -0.5",), "a whole drag is one step back"


def test_readings_are_the_truth_plus_an_error_that_moves_with_them():
    clean, noisy = (View("plane", "nearest", noise=v, edits=["move 2 0.5 0.5", "add 0 0"]) for v in (0.0, 0.1))
    untouched = [view.batch(View("plane", "nearest", noise=v)).y_obs for v in (0.0, 0.1)]
    a, b = view.batch(clean), view.batch(noisy)
    np.testing.assert_allclose((b.y_obs - a.y_obs)[0, :13], (untouched[1] - untouched[0])[0], atol=1e-6)
    assert abs(float((b.y_obs - a.y_obs)[0, 13])) > 1e-4, "a reading that was added has an error of its own"
    node = torch.cdist(a.s_obs[0, :2], a.s_qry[0]).argmin(1)
    np.testing.assert_allclose(a.y_obs[0, :2], a.y_qry[0, node], atol=1e-6)


def test_removing_a_reading_leaves_the_errors_of_the_others():
    all_of_them, without = (view.batch(View("plane", noise=0.1, edits=edits)) for edits in ([], ["remove 4"]))
    kept = [i for i in range(13) if i != 4]
    assert torch.equal(all_of_them.y_obs[:, kept], without.y_obs) and torch.equal(all_of_them.s_obs[:, kept], without.s_obs)


def test_readings_of_measured_fields_stay_on_nodes_with_values():
    asked = view.batch(
        View("sst", "nearest", readings=5, edits=[f"add {x / 10} {y / 10}" for x in range(-9, 10, 6) for y in range(-9, 10, 6)])
    )
    assert asked.y_obs.isfinite().all() and asked.y_qry.isnan().any()
    assert float(torch.cdist(asked.s_obs[0].double(), asked.s_qry[0].double()).amin(1).max()) < 1e-6


def test_the_same_readings_are_asked_at_every_resolution():
    coarse, fine = (view.batch(View(resolution=r, edits=["add 0.1 0.2"])) for r in (32, 96))
    assert torch.equal(coarse.s_obs, fine.s_obs) and torch.equal(coarse.y_obs, fine.y_obs)
    assert fine.y_qry.shape[1] == 96**2


@pytest.mark.parametrize("edit", ["add 0.1", "add 2 0", "move 0 nan 0", "move -1 0 0", "remove", "paint 1 2", "move 0.5 0 0", "add 0 0 0"])
def test_an_edit_that_is_none_is_named_with_what_is_allowed(edit):
    with pytest.raises(ValueError, match="add X Y"):
        view.batch(View(edits=[edit]))


def test_trouble_is_said_in_words_and_the_maps_stay(box):
    box.controls["world"].value = "faces"
    before = state(box)
    box.controls["readings"].value = 1024
    assert "Not possible" in box.trouble.value and "1024" in box.trouble.value and state(box) == before
    box.controls["readings"].value = 26
    assert box.trouble.value == "" and state(box) != before
    box.remove(99)
    assert "names reading 99" in box.trouble.value
    box.undo()
    assert box.trouble.value == ""


def test_undo_walks_back_and_reset_returns(box):
    box.controls["method"].value = "gp"
    box.controls["world"].value = "radial"
    box.tell("the oracle")
    box.undo()
    assert (box.view.world, box.controls["world"].value, box.controls["method"].value) == ("radial", "radial", "gp")
    box.undo()
    assert box.view.world == "plane" and box.view.method == "gp"
    box.undo()
    assert box.view == box.first and not box.before
    box.undo()
    assert box.view == box.first
    box.surprise()
    box.reset()
    assert box.view == box.first and box.controls["world"].value == "plane"


def test_new_readings_end_the_edits_of_the_old_and_other_controls_keep_them(box):
    box.add(0.1, 0.1)
    box.controls["method"].value, box.controls["noise"].value = "oi", 0.05
    assert box.view.edits == ("add 0.1 0.1",)
    box.controls["seed"].value = 3
    assert box.view.edits == ()


@pytest.mark.parametrize("number", range(1, 9))
def test_a_surprise_is_a_view_that_answers(number):
    asked = stories.surprise(number)
    assert asked == stories.surprise(number)
    assert np.isfinite(view.answer(asked, PAST).psnr)


def test_controls_that_a_view_does_not_use_are_out_of_sight(box):
    hidden = lambda: {name for name in ("steps", "solver", "resolution") if box.controls[name].layout.display == "none"}  # noqa: E731
    assert hidden() == {"steps", "solver"}
    box.controls["method"].value = "exact flow"
    assert hidden() == set()
    box.controls["world"].value = "air"
    assert hidden() == {"resolution"}


def test_the_path_leads_from_noise_to_what_is_shown(box):
    asked = View("radial", "exact flow", readings=26, steps=6, solver="euler", show="sample")
    found = view.answer(asked, PAST)
    times, states = found.path
    assert times == pytest.approx([i / 6 for i in range(7)]) and states.shape == (7, 1024, 1)
    assert torch.equal(states[-1], found.shown)
    maps, scene = canvas.pictures(asked, view.batch(asked), found, "x")
    assert len(maps) == 4 - 1 + 7 and scene["times"] == times  # one draw has no deviation
    assert ode.evaluations("euler", 6) == 6


def test_maps_are_in_the_worlds_unit_and_as_many_as_the_panels_say():
    asked = View("air", "oi", readings=26)
    found = view.answer(asked, PAST)
    maps, scene = canvas.pictures(asked, view.batch(asked), found, "x")
    assert (scene["rows"], scene["columns"], scene["unit"]) == (37, 49, "K") and scene["limits"]["field"][0] > 200
    assert [a.size for a in maps] == [37 * 49] * 4 and sum(p["channels"] for p in scene["panels"]) == 4
    colour = View("photos", "nearest", readings=26)
    maps, scene = canvas.pictures(colour, view.batch(colour), view.answer(colour, PAST), "x")
    assert [p["channels"] for p in scene["panels"]] == [3, 0, 3, 1, 0] and [a.size for a in maps] == [3072, 3072, 1024]


def test_saved_files_say_again_what_is_shown(box, tmp_path):
    box.tell("land in the sea")
    box.add(0.0, 0.0)
    files_of = {name: tmp_path / box.save(name)[0] for name in export.FILES}
    for name, path in files_of.items():
        path.write_bytes(box.save(name)[1])
    assert Image.open(io.BytesIO(files_of["picture"].read_bytes())).width == 840
    with files.open_netcdf(files_of["field"]) as found:
        error = (found["answer"] - found["truth"]).values
        np.testing.assert_allclose(found["error"].values, error, atol=1e-6)
        assert found.sizes["reading"] == 52 and found["truth"].attrs["units"] == "K" and np.isnan(error).any()
        assert found.attrs["psnr_db"] == pytest.approx(box.answer.psnr)
    read = files.read_table(files_of["readings"])
    assert len(read.values) == 52 and read.units[2] == "K" and read.values.min() > 280
    box.controls["world"].value = "photos"
    assert box.save("readings")[1] == b"" and "colours" in box.trouble.value


def test_the_parameter_file_makes_the_same_view_in_batch(box, tmp_path):
    """The notebook's own cells, with the parameters that the file gives, record the decibels that were shown."""
    box.tell("the clamp that caps at 15.5 dB")
    box.move(3, 0.3, -0.2)
    path = tmp_path / "view.yaml"
    path.write_bytes(box.save("parameters")[1])
    given = params.effective(NOTEBOOK, path)
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    names, imports, opening, numbers = given, *cells[1:4]
    exec(imports, names)
    exec(opening.split("box = ")[0], names)
    exec(numbers, names)
    assert report.RECORDED["psnr_db"] == pytest.approx(box.answer.psnr, rel=1e-5)
    assert names["opened"] == box.view


def test_the_notebook_declares_every_value_of_a_view():
    declared = params.parameters(NOTEBOOK)
    assert set(View().told()) | {"device", "folder", "past"} == set(declared)
    for name, value in View().told().items():
        assert declared[name].default == value


def test_the_distance_to_the_best_other_method_is_said(box):
    box.controls["method"].value = "nearest"
    box.settle()
    name, psnr = view.best(box.rivals, "nearest")
    assert f"{name}, {psnr:.1f} dB, {psnr - box.answer.psnr:.1f} dB ahead" in box.words.value
    told = {row["name"]: row for row in box.canvas.board}
    assert told["nearest"]["chosen"] and told["nearest"]["psnr"] == pytest.approx(box.answer.psnr)
    assert name not in ("oracle", "nearest") and set(told) >= {"gp", "oi", "oracle", "v5"}
    box.canvas.hear({"do": "method", "name": "oi"})
    assert box.view.method == "oi"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "kriging"}, "choose one of"),
        ({"world": "mars"}, "unknown world"),
        ({"readings": 5000}, "1024"),
        ({"resolution": 1}, "2 to 256"),
    ],
)
def test_a_view_that_cannot_be_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        View(**given)


# ---- slow answers ----


def test_a_slow_computation_ends_when_the_next_begins():
    ended, heard = [], []

    def slow():
        try:
            while True:
                sum(range(1000))
        finally:
            ended.append("slow")

    async def live():
        one = aside.Aside()
        one.start("slow", slow, lambda *told: heard.append(told))
        await asyncio.sleep(0.1)
        one.start("fast", lambda: 42, lambda *told: heard.append(told))
        assert one.key == "fast"
        await asyncio.sleep(0.3)
        assert one.key is None
        one.start("broken", lambda: 1 / 0, lambda *told: heard.append(told), wait=0.05)
        await asyncio.sleep(0.3)

    asyncio.run(live())
    assert ended == ["slow"] and heard[0] == (42, None) and isinstance(heard[1][1], ZeroDivisionError) and len(heard) == 2


def test_what_took_long_runs_aside_says_so_and_is_overtaken(opened, monkeypatch):
    opened.reset()
    shown = []

    async def live():
        opened.took = {playground._kind(View(method="gp")): 5.0}
        real = view.answer

        def slowly(asked, *options):
            if asked.method == "gp":
                time.sleep(0.2)
            return real(asked, *options)

        monkeypatch.setattr(view, "answer", slowly)
        opened.controls["method"].value = "gp"
        shown.append((opened.canvas.busy, opened.answer.psnr, opened.view.method))
        opened.controls["method"].value = "nearest"
        shown.append((opened.canvas.busy, opened.canvas.scene["panels"][2]["title"]))
        await asyncio.sleep(0.5)
        shown.append(opened.canvas.scene["panels"][2]["title"])
        opened.controls["method"].value = "gp"
        opened.took[playground._kind(View(method="gp"))] = 5.0
        await asyncio.sleep(1.0)
        shown.append(opened.canvas.scene["panels"][2]["title"])
        opened.answering.cancel()

    asyncio.run(live())
    assert "gp is working" in shown[0][0] and shown[0][2] == "gp"
    assert shown[1][0] == "" and shown[1][1].startswith("nearest") and shown[2].startswith("nearest")
    assert shown[3].startswith("gp,")


def test_v5_answers_at_once_and_again_when_it_has_learned(opened, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(trained, "FOLDER", tmp_path)  # without weights that are kept
    trained._LEARNED.pop(("radial", PAST), None)
    monkeypatch.setattr(playground, "SLOW", 60.0)  # however busy this machine is

    async def live():
        opened.tell("13 readings are enough")
        opened.controls["world"].value = "radial"
        told.append((opened.answer.quick, "still learning" in opened.words.value, opened.learning.key))
        for _ in range(100):
            await asyncio.sleep(0.1)
            if opened.learning.key is None:
                break
        told.append((opened.answer.quick, trained.at_hand("radial", PAST)))
        opened.answering.cancel()

    asyncio.run(live())
    assert told == [(True, True, "radial"), (False, True)]


# ---- trained versions, and the page of its own ----


@pytest.fixture
def weights_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    trained._flow.cache_clear()
    return tmp_path


def test_a_kept_flow_answers_as_before_with_its_path(weights_folder, monkeypatch):
    network = model.build("v5-white", width=16, layers=1, inner=16, frequencies=4).eval()
    trained.keep(weights_folder / "white.safetensors", network, "v5-white", "plane")
    (weights_folder / "foreign.json").write_text("[1, 2")
    monkeypatch.setattr(view, "METHODS", (*view.METHODS, *trained.flows()))
    again = trained.flow("v5-white", "plane")
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True))
    found = view.answer(View(method="v5-white", steps=3, solver="euler"), PAST)
    assert len(found.path[0]) == 4 and found.path[1].shape == (4, 1024, 1) and found.std is not None
    with pytest.raises(ValueError, match="trained on plane: choose that world"):
        view.answer(View("radial", "v5-white"), PAST)
    with pytest.raises(ValueError, match="no weights of 'v1-mamba'"):
        trained.flow("v1-mamba", "plane")


def test_the_page_warns_where_others_can_reach_it(tmp_path):
    assert len(serve.told("127.0.0.1", 8866)) == 1 and "http://127.0.0.1:8866/" in serve.told("127.0.0.1", 8866)[0]
    assert "WARNING" in serve.told("0.0.0.0", 8866)[1] and "no password" in serve.told("0.0.0.0", 8866)[1]
    command, environment = serve.prepared(tmp_path, "127.0.0.1", 8866, "dark")
    assert "--Voila.ip=127.0.0.1" in command and (tmp_path / "Sparse Fields Lab.ipynb").exists()
    assert environment["JUPYTER_PATH"].startswith(str(ROOT / "lib" / "share"))
    with pytest.raises(ValueError, match="unknown theme 'pink'"):
        serve.prepared(tmp_path, "127.0.0.1", 8866, "pink")

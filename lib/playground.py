"""The playground: controls around five maps that answer at once, in a notebook, in a page by Voila, or driven from Python.

    box = playground.box(view.View(world="plane"))        box.controls["readings"].value = 26        box.words.value
    box.add(0.1, -0.3), box.move(0, 0.2, 0.2), box.remove(3)        box.undo(), box.reset(), box.tell("the oracle"), box.surprise()

What it must reach, measured in a browser by `make bench`: from a slider's release to the changed maps 120 ms in the median and 250 ms in 95
of 100 moves at 32 x 32, 500 ms at 128 x 128; a drag of 40 moves leaves no queue, since the page keeps only the newest value unsent while an
answer is under way. A cheap answer is computed where it is asked; what took long before runs aside (lib/aside.py), says so, and is ended
by the next move. V5 answers at once with the experts that need no learning, and again when it has learned the others. All methods are
scored on the same readings in a pause of the user's. Without a running loop everything is computed when asked, `settle` what is left.
"""

from __future__ import annotations

import html
import time
from dataclasses import replace

import ipywidgets
import plotly.graph_objects as go
import torch

from lib import aside, data, export, ode, stories, trained, widgets, worlds
from lib import view as views
from lib.canvas import Canvas
from lib.view import Answer, View

NOISES = (0.0, 0.02, 0.05, 0.1, 0.2)
STEPS = (1, 2, 4, 8, 16, 32, 64)
REDRAWN = ("world", "layout", "readings", "seed")  # a change of these draws new readings, so edits of the old ones end
NO_STORY = "choose one ..."
SLOW = 0.4  # seconds: what took longer before runs aside
PAUSE = 0.35  # seconds without a move after which all methods are scored
ONE_MOVE = 0.7  # seconds within which changes of one control are undone together
KEPT = 100  # views to go back to


def box(first: View | None = None, past: int = views.PAST) -> Playground:
    """The playground at a view, its first answer complete; past: how many past fields methods learn from. One thread from here on."""
    torch.set_num_threads(1)  # for matrices of some dozen rows, threads wait for each other longer than they compute
    return Playground(View() if first is None else first, past)


def controls(first: View) -> dict[str, ipywidgets.Widget]:
    """A control per field of a View but its edits, and the stories."""
    sensors = widgets.sensors(live=True, readings=first.readings, noise=first.noise, field=first.seed, noises=NOISES)
    found = {
        "story": widgets.choice("story", [NO_STORY, *stories.STORIES]),
        "world": widgets.choice("world", views.NAMES, first.world),
        "method": widgets.choice("method", views.METHODS, first.method),
        "layout": sensors["layout"],
        "readings": sensors["readings"],
        "noise": sensors["noise"],
        "seed": sensors["field"],
        "resolution": widgets.slider("resolution", widgets.among(views.RESOLUTIONS, first.resolution), first.resolution),
        "show": widgets.choice("show", [("the mean", "mean"), ("one sample", "sample")], first.show),
        "steps": widgets.slider("solver steps", widgets.among(STEPS, first.steps), first.steps, live=True),
        "solver": widgets.choice("solver", ode.METHODS, first.solver),
        "clamp": ipywidgets.Checkbox(first.clamp, description="clamp the answer to [0, 1]", indent=False),
    }
    found["layout"].value = first.layout
    for control in found.values():  # three beside each other in a notebook's cell
        control.layout.width = "268px"
        control.style.description_width = "76px"
    return found


class Playground(ipywidgets.VBox):
    """Attributes controls, words, trouble, canvas, stage; view, the one asked for; answer and batch, what is shown; past."""

    def __init__(self, first: View, past: int):
        super().__init__()
        self.controls, self.past, self.first = controls(first), past, first
        self.canvas = Canvas(self._gesture)
        self.words, self.trouble, self.stage = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.VBox()
        self.view, self.answer, self.batch, self.rivals = first, None, None, {}
        self.answering, self.learning, self.took = aside.Aside(), aside.Aside(), {}
        self.before: list[View] = []
        self._last, self._quiet, self._surprises, self._says = ("", 0.0), False, 0, ""
        self._lay_out()
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: self._moved(name), names="value")
        self._controls_follow()
        self._answer_now(quick=True)
        self.settle()

    @property
    def figure(self) -> go.Figure:
        """What is shown, as a plotly figure."""
        return export.figure(self.view, self.batch, self.answer)

    def _lay_out(self) -> None:
        wide = {"flex": "1 1 276px", "flex_flow": "row wrap", "align_content": "flex-start"}
        rows = ipywidgets.HBox(list(self.controls.values()), layout=wide)
        self.buttons = {"undo": self.undo, "reset": self.reset, "surprise me": self.surprise}
        self.buttons |= {f"save {name}": lambda name=name: self.save(name) for name in export.FILES}
        pressed = []
        for words, act in self.buttons.items():
            button = ipywidgets.Button(description=words, layout={"width": "auto", "margin": "2px 6px 2px 0"})
            button.on_click(lambda _, act=act: act())
            pressed.append(button)
        bar = ipywidgets.HBox(pressed, layout={"flex_flow": "row wrap"})
        maps = ipywidgets.VBox(
            [bar, self.words, self.trouble, self.canvas], layout={"flex": "1000 1 640px", "min_width": "0", "margin": "0 0 0 10px"}
        )
        self.children = [ipywidgets.HBox([rows, maps], layout={"flex_flow": "row wrap", "max_width": "1480px"}), self.stage]

    # ---- what the user does ----

    def add(self, x: float, y: float) -> None:
        """A reading more."""
        self._edit(f"add {x} {y}")

    def move(self, index: int, x: float, y: float) -> None:
        """A reading to another site."""
        self._edit(f"move {index} {x} {y}", f"move {index}")

    def remove(self, index: int) -> None:
        """A reading less."""
        self._edit(f"remove {index}")

    def undo(self) -> None:
        """Back to the view before."""
        if self.before:
            self._go(self.before.pop(), remember=False)

    def reset(self) -> None:
        """Back to the view the playground was opened at."""
        self._go(self.first)

    def tell(self, name: str) -> None:
        """A story: its view and its sentence."""
        story = stories.STORIES[name]
        self._says = story.says
        self.stage.children = [widgets.dt_explorer()] if story.dt else []
        self._go(story.view, story=name)

    def surprise(self) -> None:
        """Another view at random."""
        self._surprises += 1
        self._go(stories.surprise(self._surprises))

    def save(self, name: str) -> tuple[str, bytes]:
        """Hand a file of export.FILES to the browser; its name and content."""
        file, kind, make = export.FILES[name]
        try:
            content = make(self.view, self.batch, self.answer, self.past)
        except ValueError as error:
            self._trouble(error)
            return file, b""
        self.canvas.save(file, kind, content)
        return file, content

    def _gesture(self, told: dict) -> None:
        if told["do"] == "method" and told["name"] in views.METHODS:
            self.controls["method"].value = told["name"]
        elif told["do"] == "add":
            self.add(told["x"], told["y"])
        elif told["do"] == "remove":
            self.remove(told["index"])
        elif told["do"] in ("drag", "drop"):
            self._edit(f"move {told['index']} {told['x']} {told['y']}", f"gesture {told.get('gesture')}")

    def _edit(self, edit: str, what: str = "") -> None:
        try:
            self._go(replace(self.view, edits=views.edited(self.view, edit)), what=what)
        except ValueError as error:
            self._trouble(error)

    def _moved(self, name: str) -> None:
        if self._quiet:
            return
        if name == "story":
            return self.tell(self.controls["story"].value) if self.controls["story"].value != NO_STORY else None
        edits = () if name in REDRAWN else self.view.edits
        try:
            self._go(replace(self.view, **{name: self.controls[name].value}, edits=edits), what=name)
        except ValueError as error:
            self._trouble(error)

    # ---- from a view to what is shown ----

    def _go(self, view: View, what: str = "", story: str = NO_STORY, remember: bool = True) -> None:
        """Ask for another view; one drag is one step back, and so are changes of one control within ONE_MOVE seconds of each other."""
        goes_on = what == self._last[0] and (what.startswith("gesture") or time.monotonic() - self._last[1] < ONE_MOVE)
        if remember and view != self.view and not (what and goes_on):
            self.before = [*self.before[-KEPT + 1 :], self.view]
        if story == NO_STORY and not what:
            self._says, self.stage.children = "", []
        self.view = view
        self._controls_follow(story if not what else None)
        self._answer()
        self._last = (what, time.monotonic())

    def _controls_follow(self, story: str | None = NO_STORY) -> None:
        self._quiet = True
        try:
            for name, control in self.controls.items():
                value = getattr(self.view, name, story)
                if value is not None and control.value != value:
                    if hasattr(control, "options") and value not in [o[1] if isinstance(o, tuple) else o for o in control.options]:
                        control.options = widgets.among(control.options, value)
                    control.value = value
        finally:
            self._quiet = False
        steps = views.uses_steps(self.view.method)
        for name, used in {"steps": steps, "solver": steps, "resolution": worlds.get(self.view.world).formula is not None}.items():
            self.controls[name].layout.display = None if used else "none"

    def _answer(self) -> None:
        """Answer the view: here, or aside where that took long before."""
        self.answering.cancel()
        view, loop = self.view, aside.loop()
        if loop is None or not self._slow(view):
            return self._answer_now(quick=loop is not None)
        self.canvas.busy = f"{view.method} is working; the next move ends it"
        self.answering.start(view, lambda: self._computed(view, True), self._arrived)

    def _slow(self, view: View) -> bool:
        """By the time that this took before; unknown methods on fine grids count as slow."""
        return self.took.get(_kind(view), SLOW + 1 if view.resolution >= 192 else 0.0) > SLOW

    def _computed(self, view: View, quick: bool) -> tuple[View, data.Batch, Answer]:
        return view, views.batch(view), views.answer(view, self.past, quick)

    def _answer_now(self, quick: bool) -> None:
        try:
            found = self._computed(self.view, quick)
        except Exception as error:  # a notebook shows nothing of an exception in a callback, so say it here
            return self._trouble(error)
        self._arrived(found, None)

    def _arrived(self, found, error: Exception | None) -> None:
        """Show an answer, and have learned and scored in a pause what it left."""
        if error is not None:
            return self._trouble(error)
        view, self.batch, self.answer = found
        self.took[_kind(view)] = self.answer.seconds
        self.rivals, self.trouble.value = {}, ""
        self.canvas.show(view, self.batch, self.answer, export.title(view, self.answer))
        self._tell()
        if aside.loop() is None:
            return
        if self.answer.quick:
            self._learn(view.world)
        self.answering.start("rivals", lambda: views.rivals(view, self.past), self._scored, wait=PAUSE)

    def _learn(self, world: str) -> None:
        if self.learning.key != world:
            self.learning.start(world, lambda: trained.prior(world, self.past), self._learned)

    def _learned(self, _, error: Exception | None) -> None:
        if error is not None:
            return self._trouble(error)
        if self.view.method == "v5":
            self._answer()

    def _scored(self, found, error: Exception | None) -> None:
        if error is None:
            self.rivals = found
            self._tell()

    def settle(self) -> None:
        """Score all methods now."""
        self.answering.cancel()
        if self.answer is not None:
            self._scored(views.rivals(self.view, self.past), None)

    def _tell(self) -> None:
        view, answer = self.view, self.answer
        known = {view.method: answer.psnr} | self.rivals if view.show == "mean" and not view.clamp else self.rivals
        self.canvas.board = [_row(name, known.get(name), name == view.method) for name in views.METHODS if not views.uses_steps(name)]
        parts = [f"PSNR <b>{answer.psnr:.1f} dB</b>", f"SSIM {answer.ssim:.2f}", f"{1000 * answer.seconds:.0f} ms"]
        parts.append(_distance(view, answer, self.rivals))
        if answer.quick:
            parts.append("V5 is still learning")
        lines = [f"<b>{html.escape(self._says)}</b>"] if self._says else []
        place = worlds.get(view.world)
        lines += [" · ".join(filter(None, parts)), f"{html.escape(place.name)}: {html.escape(place.note)}"]
        if answer.path:
            lines.append(f"{ode.evaluations(view.solver, view.steps) or 'as many as it needs'} evaluations of the velocity; play the path")
        self.words.value = f'<div style="line-height:1.35;min-height:3.9em">{"<br>".join(lines)}</div>'

    def _trouble(self, error: Exception) -> None:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        self.trouble.value = f'<span style="color:#D0453A"><b>Not possible:</b> {html.escape(what)}</span>'
        self.canvas.busy = ""


def _kind(view: View) -> tuple:
    """Views that take about as long as each other."""
    return view.method, view.resolution, view.readings > 205, view.steps, view.show


def _row(name: str, found, chosen: bool) -> dict:
    """An entry of the list of methods."""
    told = {"name": name, "method": name, "chosen": chosen, "psnr": None, "why": ""}
    return told | ({"psnr": found} if isinstance(found, float) else {"why": "–" if found else ""})


def _distance(view: View, answer: Answer, rivals: dict) -> str:
    """How far the answer is from the best method that is told no formula, on the world's own grid."""
    found = views.best(rivals, view.method)
    if found is None:
        return ""
    apart = found[1] - answer.psnr
    words = f"{apart:.1f} dB ahead" if apart > 0.05 else f"{-apart:.1f} dB behind" if apart < -0.05 else "level"
    return f"best of the others told no formula: {found[0]}, {found[1]:.1f} dB, {words}"

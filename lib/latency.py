"""How fast the playground answers in a real Chromium before a real JupyterLab: the section `browser` of `make bench`.

A move is a key on a slider; its time runs from the key to the frame after the maps have changed, on the page's own clock. Moves are a
random fifth to nine tenths of a second apart, so that some arrive while all methods are being scored. The drag is one of 40 steps by mouse;
it has settled when the maps have changed for the last time. Memory is that of the kernel, after moves that have filled its caches.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from lib import browsing, data
from lib.serve import ROOT

NOTEBOOK = "00_start_here.ipynb"
CHEAP = ("constant", "nearest", "linear", "thin_plate", "oi", "pod")
MOVES, ENDURING, WARM = 36, 500, 120
PROBE = """() => {
    const maps = document.querySelector('.sf-maps'), probe = (window.probe = { began: 0, released: 0, changed: 0 });
    document.addEventListener('keydown', () => (probe.began = performance.now()), true);
    document.addEventListener('mouseup', () => (probe.released = performance.now()), true);
    const painted = () => requestAnimationFrame(() => setTimeout(() => (probe.changed = performance.now())));
    new MutationObserver(painted).observe(maps, { attributes: true, attributeFilter: ['data-serial'] });
}"""
CHANGED = "() => window.probe.changed > window.probe.began"


def browser(device="cpu", moves: int = MOVES, enduring: int = ENDURING) -> dict:
    """Milliseconds from a slider to the changed maps, seconds to open notebook 00, megabytes of a long session; {} without a browser."""
    if browsing.missing():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / NOTEBOOK).write_bytes((ROOT / "notebooks" / NOTEBOOK).read_bytes())
        with browsing.lab(root) as address, browsing.browser() as chromium:
            page = browsing.page(chromium, 1000)
            found = {"open_s": opened(page, address)}
            page.evaluate(PROBE)
            wait = torch.Generator().manual_seed(data.generator(0, "moves").initial_seed())
            found |= _summary("v5_32", _moves(page, moves, wait))
            cheap = []
            for name in CHEAP:
                choose(page, "method", name)
                cheap += _moves(page, moves // len(CHEAP), wait)
            found |= _summary("cheap_32", cheap)
            choose(page, "method", "v5")
            found["drag_settled_ms"] = dragged(page)
            found["memory_mb"] = endured(page, enduring, min(WARM, enduring))
            for _ in range(3):
                press(page, "resolution", "ArrowRight")
            found |= _summary("v5_128", _moves(page, moves, wait))
            found |= {"moves": moves, "load": psutil.getloadavg()[0], "cores": psutil.cpu_count()}
            page.evaluate(browsing.SHUT_DOWN)
            page.close()
    return found


def opened(page, address: str) -> float:
    """Seconds from opening notebook 00 of a running server to maps that answer; then waits for the rest of it."""
    page.goto("about:blank")
    began = page.evaluate("() => Date.now()")
    browsing.open_notebook(page, address, NOTEBOOK)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_selector(".sf-maps[data-serial]", timeout=180_000)
    seconds = (page.evaluate("() => Date.now()") - began) / 1e3
    page.wait_for_timeout(2_000)
    page.wait_for_function(browsing.IDLE, timeout=180_000)
    if found := page.evaluate(browsing.ERRORS):
        raise RuntimeError(f"{NOTEBOOK} failed: {found[0]}")
    return seconds


def press(page, label: str, key: str) -> float:
    """Milliseconds from a key on the slider to the frame after the maps have changed."""
    slider = page.locator(".widget-hslider", has=page.locator(".widget-label", has_text=label)).first
    slider.locator(".noUi-handle").focus()
    page.keyboard.press(key)
    page.wait_for_function(CHANGED, timeout=60_000)
    return page.evaluate("() => window.probe.changed - window.probe.began")


def choose(page, label: str, value: str) -> None:
    """Choose from a list and wait for the answer."""
    control = page.locator(".widget-dropdown", has=page.locator(".widget-label", has_text=label)).first.locator("select")
    control.select_option(label=value)
    page.wait_for_function("v => document.querySelector('.sf-maps').dataset.title.startsWith(v)", arg=value, timeout=60_000)
    page.wait_for_timeout(1_000)


def dragged(page, steps: int = 40) -> float:
    """Milliseconds from letting go after a drag of so many steps to the last change of the maps."""
    slider = page.locator(".widget-hslider", has=page.locator(".widget-label", has_text="readings")).first
    box = slider.locator(".noUi-handle").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for i in range(steps):
        page.mouse.move(x + 35 * (1 - abs(1 - 2 * i / (steps - 1))), y)
    page.mouse.up()
    page.wait_for_timeout(3_000)
    return max(0.0, page.evaluate("() => window.probe.changed - window.probe.released"))


def endured(page, count: int, warm: int) -> float:
    """Megabytes that the kernel has grown by over so many moves, after `warm` of them."""
    kernel, before = _kernel(), 0
    for i in range(warm + count):
        before = kernel.memory_info().rss if i == warm else before
        move(page, ("field", "readings", "noise")[i % 3], i // 6)
    return (kernel.memory_info().rss - before) / 1e6


def move(page, label: str, turn: int) -> float:
    """A step of the slider, to the right in even turns, or the other way where it has no room."""
    slider = page.locator(".widget-hslider", has=page.locator(".widget-label", has_text=label)).first.locator(".noUi-handle")
    now, low, high = (float(slider.get_attribute(f"aria-value{name}")) for name in ("now", "min", "max"))
    right = now < high and (turn % 2 == 0 or now == low)
    return press(page, label, "ArrowRight" if right else "ArrowLeft")


def _kernel() -> psutil.Process:
    """The kernel that this process's server has started."""
    return next(p for p in psutil.Process().children(recursive=True) if any("ipykernel" in word for word in p.cmdline()))


def _moves(page, count: int, wait: torch.Generator) -> list[float]:
    """So many moves of the field's slider, there and back, apart by a random pause."""
    times = []
    for i in range(count):
        page.wait_for_timeout(200 + 700 * float(torch.rand((), generator=wait)))
        times.append(move(page, "field", i // 9))
    return times


def _summary(name: str, times: list[float]) -> dict[str, float]:
    """Median and 95th percentile, and between which values the middle half of the moves lies."""
    parts = statistics.quantiles(times, n=20, method="inclusive")
    return {f"{name}_ms": statistics.median(times), f"{name}_ms_low": parts[4], f"{name}_ms_high": parts[14], f"{name}_p95_ms": parts[18]}


SECTIONS: dict[str, Callable[..., dict]] = {"browser": browser}

"""Pictures of the README from the real thing: an animation of a reconstruction forming, and the playground in a browser.

`python -m lib refs` makes them into outputs/reference/pictures. The animation is the same on every run; a screenshot shows times, so it is
replaced only where it looks different.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lib import browsing, folders, plots, trained, v5, view
from lib.png import png
from lib.view import View

FOLDER = Path("outputs") / "reference" / "pictures"
FORMING = View("interference", "v5", readings=24)
NUMBERS = tuple(range(1, 25))  # readings of the frames
FRAME_MS, LAST_MS = 450, 3000
COLOURS = 220
PEER = "gp"
DIFFERENT = 0.02  # mean difference of two screenshots, of the whole range, above which they look different
LARGEST = 2_000_000  # bytes of the animation


def make(root: Path, say: Callable[[str], None] = print) -> list[str]:
    """Make both pictures; the names of those that changed. Without a browser the screenshot stays as it is."""
    folder, changed = root / FOLDER, []
    folder.mkdir(parents=True, exist_ok=True)
    found = forming()
    if len(found) > LARGEST:
        raise ValueError(f"the animation has {len(found)} bytes, more than {LARGEST}; use fewer frames or colours")
    if not (folder / "forming.gif").exists() or (folder / "forming.gif").read_bytes() != found:
        folders.write(folder / "forming.gif", found)
        changed.append("forming.gif")
    if what := browsing.missing():
        say(f"playground.png stays as it is: {what}")
    elif _differ(folder / "playground.png", found := playground()):
        folders.write(folder / "playground.png", found)
        changed.append("playground.png")
    return changed


def forming(first: View = FORMING, numbers: Sequence[int] = NUMBERS) -> bytes:
    """A GIF of one field read at more and more sites: truth with readings, a Gaussian process, V5, and the deviation V5 claims."""
    frames = [_frame(replace(first, readings=n)).quantize(COLOURS, dither=Image.Dither.NONE) for n in numbers]
    buffer = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
    return buffer.getvalue()


def _frame(asked: View) -> Image.Image:
    batch = view.batch(asked)
    mine = v5.predict(trained.quick_prior(asked.world, view.PAST), batch)
    peer = view.answer(replace(asked, method=PEER), view.PAST)
    rows, truth = view.shape(asked), batch.y_qry
    psnr = -10 * np.log10(max(float((mine.mean - truth).square().mean()), 1e-15))
    first = f"truth, {asked.readings} reading{'s' * (asked.readings != 1)}"
    titles = (first, f"Gaussian process, {peer.psnr:.0f} dB", f"V5, {psnr:.0f} dB", "V5's standard deviation")
    parts = (truth[0], peer.shown, mine.mean[0], mine.std[0])
    images = {title: part.double().numpy().reshape(rows) for title, part in zip(titles, parts, strict=True)}
    limits = {"low": float(truth.min()), "high": float(truth.max())}
    fig = plots.field_maps(images, dict.fromkeys(titles, batch.s_obs[0]), kinds={titles[3]: "std"}, **limits)
    fig.data[6].update(zmax=0.5)  # one scale for all frames: half the range of the values
    return Image.open(io.BytesIO(png(fig))).convert("RGB")


def playground(height: int = 860) -> bytes:
    """The page of `make app` at the first story, as Chromium shows it once all methods are scored."""
    with tempfile.TemporaryDirectory() as folder, browsing.app(Path(folder)) as address, browsing.browser() as chromium:
        page = browsing.page(chromium, height)
        page.goto(address, timeout=120_000)
        page.wait_for_selector(".sf-maps[data-serial]", timeout=120_000)
        page.wait_for_function("() => !document.body.innerText.includes('still learning')", timeout=180_000)
        page.wait_for_timeout(3_000)
        found = page.screenshot()
        page.close()
    return found


def _differ(path: Path, content: bytes) -> bool:
    """Whether two screenshots look different, be it by their size."""
    if not path.exists():
        return True
    old, new = (np.asarray(Image.open(io.BytesIO(c)).convert("L"), float) / 255 for c in (path.read_bytes(), content))
    return old.shape != new.shape or float(np.abs(old - new).mean()) > DIFFERENT

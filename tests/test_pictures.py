"""Pictures of the README: the animation shows every number of readings, in a file small enough to read, and only changes are written."""

import io
import itertools

import numpy as np
from PIL import Image

from lib import browsing, pictures
from lib.view import View


def test_the_animation_has_a_frame_per_number_of_readings_and_stays_the_same():
    first, numbers = View("plane", readings=8), (2, 5, 8)
    found = pictures.forming(first, numbers)
    assert found == pictures.forming(first, numbers)
    moving = Image.open(io.BytesIO(found))
    assert moving.n_frames == 3 and moving.width == 840
    frames = []
    for i in range(3):
        moving.seek(i)
        frames.append(np.asarray(moving.convert("RGB"), float))
    assert all(np.abs(a - b).mean() > 0.5 for a, b in itertools.pairwise(frames))


def test_the_kept_animation_is_small_and_whole():
    path = pictures.Path(__file__).parents[1] / pictures.FOLDER / "forming.gif"
    assert path.stat().st_size < pictures.LARGEST and Image.open(path).n_frames == len(pictures.NUMBERS)


def test_pictures_are_written_when_they_change_and_a_screenshot_when_it_looks_different(tmp_path, monkeypatch):
    shots = []

    def shot(grey):
        buffer = io.BytesIO()
        Image.new("L", (20, 20), grey).save(buffer, "PNG")
        return buffer.getvalue()

    monkeypatch.setattr(pictures, "forming", lambda: b"GIF89a")
    monkeypatch.setattr(pictures, "playground", lambda: shots.pop(0))
    monkeypatch.setattr(browsing, "missing", lambda: "")
    shots += [shot(100), shot(101), shot(200)]
    assert [pictures.make(tmp_path) for _ in range(3)] == [["forming.gif", "playground.png"], [], ["playground.png"]]
    told = []
    monkeypatch.setattr(browsing, "missing", lambda: "no Chromium")
    assert pictures.make(tmp_path, told.append) == [] and "no Chromium" in told[0]

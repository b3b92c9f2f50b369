"""Progress of a long loop: a bar on a terminal, one line per tenth in a log file, a bar that vanishes in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


def bar(total: int, start: int = 0, label: str = "", show: bool | None = None) -> Callable[[int, str], None]:
    """A function update(done, text). show: None decides by where the output goes, False is silent."""
    if show is False:
        return lambda done, text: None
    if _in_notebook():
        return _notebook(total, label)
    if sys.stderr.isatty():
        return _terminal(total, start, label)
    return _log(total, label)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules and "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


def _terminal(total, start, label):
    line = tqdm(total=total, initial=start, desc=label, unit="step", dynamic_ncols=True)

    def update(done: int, text: str) -> None:
        line.set_postfix_str(text, refresh=False)
        line.update(done - line.n)
        if done >= total:
            line.close()

    return update


def _log(total, label):
    began, next_tenth = time.monotonic(), 1

    def update(done: int, text: str) -> None:
        nonlocal next_tenth
        if done * 10 >= next_tenth * total:
            next_tenth = done * 10 // total + 1
            print(f"{label} {done}/{total} {text} {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    return update


def _notebook(total, label):
    from IPython.display import HTML, display

    place = display(HTML(f"{label}: starting"), display_id=True)

    def update(done: int, text: str) -> None:
        # emptied at the end, so that a saved notebook does not differ by the last speed it showed
        place.update(HTML("" if done >= total else f'<progress max="{total}" value="{done}"></progress> {label} {done}/{total} {text}'))

    return update

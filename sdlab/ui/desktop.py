"""A window of its own around the page, with pywebview, which is optional."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from sdlab.quoting import first_line

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "Score Distillation Lab"
SIZE, LEAST = (1280, 860), (480, 600)  # pixels of the window
AS_EVER = "without --desktop, the page opens in a browser as ever"
NO_PACKAGE = f"--desktop needs pywebview, which is not installed: pip install -r extras/desktop.txt; {AS_EVER}"
NO_SCREEN = f"--desktop needs a screen, and there is none (neither DISPLAY nor WAYLAND_DISPLAY is set); {AS_EVER}"
ON_LINUX = "on Linux it needs Qt (pip install -r extras/desktop.txt) or WebKitGTK (gir1.2-webkit2-4.1)"


def require_window(has_screen: bool) -> None:
    """Raise ValueError that says what is missing for a window, as far as that is known without opening one."""
    if importlib.util.find_spec("webview") is None:
        raise ValueError(NO_PACKAGE)
    if not has_screen:
        raise ValueError(NO_SCREEN)


def show(url: str, webview: Any = None, on_open: Callable[[], object] = lambda: None) -> None:
    """Show the page at `url` in a window, until that is closed; to be called in the main thread. `webview` is the
    package. RuntimeError if no window can be opened."""
    if webview is None:
        import webview  # pyright: ignore[reportMissingImports]  # optional
    webview.settings["ALLOW_DOWNLOADS"] = True  # results
    webview.create_window(TITLE, url, width=SIZE[0], height=SIZE[1], min_size=LEAST, text_select=True)
    try:
        webview.start(on_open)
    except Exception as e:  # each of its backends has its own errors
        raise RuntimeError(f"--desktop: no window can be opened ({first_line(e)}); {ON_LINUX}; {AS_EVER}") from e

"""What a measurement was made on and with: processor, memory, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata


def processor() -> str:
    """Name and number of cores."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def peak_rss_mb() -> int:
    """Greatest resident memory of this process so far, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0) / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from sdlab import __version__

    found = {"sdlab": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "numba", "openvino", "diffusers", "transformers", "gsplat"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found

"""The machine: processors this process may use, the cache folder, and what to record beside a measurement."""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import ipaddress
import math
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path

import platformdirs

BRIDGES = ("docker", "br-", "veth", "virbr", "vmnet", "lxc")  # how names of interfaces begin
CGROUP = Path("/sys/fs/cgroup")  # of a Linux container


@functools.cache
def n_processors() -> int:
    """Return how many logical processors this process may use: all, or fewer by its affinity or container quota."""
    limits = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):  # absent outside Linux containers; "max" where there is no quota
        quota, period = (CGROUP / "cpu.max").read_text().split()
        limits.append(math.ceil(int(quota) / int(period)))
    return max(1, min(limits))


def n_cores() -> int:
    """Return how many physical cores this process may use, capped by `n_processors` and OMP_NUM_THREADS."""
    import psutil

    limits = [psutil.cpu_count(logical=False) or 1, n_processors()]
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(os.environ["OMP_NUM_THREADS"]))
    return max(1, min(limits))


def memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or less by its container's limit."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2 and 1 of control groups
        with contextlib.suppress(OSError, ValueError):  # absent outside Linux containers; "max" without a limit
            limits.append(int((CGROUP / name).read_text()))
    return min(limits)


def network_addresses() -> list[str]:
    """Return this machine's IPv4 addresses on networks that are up, those of private networks first. Bridges to
    containers and virtual machines are left out: nobody else is there."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        ipaddress.ip_address(address.address)
        for name, own in psutil.net_if_addrs().items()
        if name in up and not name.startswith(BRIDGES)
        for address in own
        if address.family == socket.AF_INET
    ]
    outside = [address for address in found if not (address.is_loopback or address.is_link_local)]
    return [str(address) for address in sorted(outside, key=lambda address: not address.is_private)]


def has_nvidia_gpu() -> bool:
    """Return whether NVIDIA's driver reports a GPU on this machine, whatever torch can use."""
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    of_linux, of_wsl = Path("/proc/driver/nvidia/gpus").glob("*"), Path("/usr/lib/wsl/lib").glob("libcuda.so*")
    return any(of_linux) or any(of_wsl)


def cache_folder() -> Path:
    """Return the project's cache folder: $SDLAB_CACHE, or `sdlab` in the user's cache folder."""
    return Path(os.environ.get("SDLAB_CACHE") or platformdirs.user_cache_dir("sdlab", appauthor=False))


def processor() -> str:
    """Return the processor's name and the machine's number of logical processors."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def peak_rss_mb() -> int:
    """Return the largest resident memory of this process so far, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0) / 2**20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    from sdlab import __version__

    found = {"sdlab": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "numba", "openvino", "diffusers", "transformers", "gsplat"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found

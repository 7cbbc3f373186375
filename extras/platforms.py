"""Which versions of Python, on which platforms, find a wheel of every requirement: prints a table in Markdown.

Nothing is installed. uv, which this needs (`pip install uv`), resolves requirements.txt for each of them from the names
and the metadata of the files on the package index.

    python extras/platforms.py            # the table in docs/deploy.md
    python extras/platforms.py --newest   # what the caps in requirements.txt hold back
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {  # by the names that uv has for them
    "Linux, x86_64": "x86_64-manylinux_2_28",
    "Linux, ARM (glibc 2.35)": "aarch64-manylinux_2_35",
    "macOS 14, Apple silicon": "aarch64-apple-darwin",
    "macOS, Intel": "x86_64-apple-darwin",
    "Windows, x86_64": "x86_64-pc-windows-msvc",
    "Windows, ARM": "aarch64-pc-windows-msvc",
}
SHOWN = ("torch", "numpy")  # versions that differ between the cells
CAP = re.compile(r",<[0-9.]+")
WITHOUT = re.compile(r"\b([\w-]+)(?:\{.*?\})?[=<>][^ ]* has no wheels")


def resolved(requirements: str, python: str, platform: str) -> dict[str, str]:
    """Return the version of every package to be installed. Raises ValueError that names what has no wheel."""
    command = ["uv", "pip", "compile", "-q", "--no-header", "--no-annotate", "--only-binary", ":all:"]
    command += ["--python-version", python, "--python-platform", platform, "-"]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise ValueError(why(done.stderr))
    return dict(line.split("==") for line in done.stdout.split() if "==" in line)


def why(error: str) -> str:
    """Return in a few words what uv's error says, or its first line."""
    words = " ".join(error.split())
    missing = sorted(set(WITHOUT.findall(words)))
    return f"no wheel of {', '.join(missing)}" if missing else words[:100]


def cell(requirements: str, python: str, platform: str) -> str:
    try:
        versions = resolved(requirements, python, platform)
    except ValueError as e:
        return str(e)
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN)


def table(requirements: str) -> str:
    """Return a Markdown table with a row for each platform and a column for each version of Python."""
    rows = [["", *PYTHONS], ["---"] * (1 + len(PYTHONS))]
    rows += [[title, *(cell(requirements, p, platform) for p in PYTHONS)] for title, platform in PLATFORMS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def held_back(requirements: str, python: str) -> list[str]:
    """Return the named requirements that would be newer on Linux without caps, each with both versions."""
    named = re.findall(r"^[\w-]+", requirements, re.MULTILINE)
    capped, free = (resolved(r, python, PLATFORMS["Linux, x86_64"]) for r in (requirements, CAP.sub("", requirements)))
    names = [name.lower().replace("_", "-") for name in named]
    return [f"{name}: {capped[name]}, {free[name]}" for name in names if capped[name] != free[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--newest", action="store_true", help="list what would be newer without the caps")
    args = parser.parse_args()
    if shutil.which("uv") is None:
        print("uv is not on the PATH: pip install uv", file=sys.stderr)
        return 2
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    if args.newest:
        for python in PYTHONS:
            print(f"Python {python}:", *held_back(requirements, python) or ["nothing"], sep="\n  ")
    else:
        print(table(requirements))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Drive a server from another program: start one with `python app.py --api`, then run this file."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from urllib.request import urlopen

from gradio_client import Client

WORKING = ("loading", "compiling", "ready", "running")


def main(
    url: str = "http://127.0.0.1:7860/", name: str = "gallery", steps: int = 300, out: Path = Path("out/06")
) -> None:
    lab = Client(url, verbose=False)
    began = lab.predict(preset=name, prompt="a red bear", changes={"steps": steps}, api_name="/start")
    run = began["run"]
    wait(lab, run, steps // 2)

    changed = lab.predict(run, changes={"active": "sbp"}, api_name="/set")  # another loss from here on
    for path, told in changed["applied"].items():
        print(f"from step {told['step']} on: {path} = {told['value']}")
    wait(lab, run, steps)

    out.mkdir(parents=True, exist_ok=True)
    picture = lab.predict(run, kind="seen", api_name="/frame")
    (out / "seen.jpg").write_bytes(base64.b64decode(picture["image"].partition(",")[2]))
    made = lab.predict(run, format="ply", api_name="/export")
    with urlopen(url + made["url"]) as answer:
        (out / made["name"]).write_bytes(answer.read())
    print(f"{made['name']}: {made['bytes']:,} bytes, step {made['step']}")
    lab.predict(run, api_name="/stop")


def wait(lab: Client, run: str, step: int) -> None:
    """Wait until a run has taken `step` steps, or has stopped before."""
    told = lab.predict(run, api_name="/status")
    while told["step"] < step and told["phase"] in WORKING:
        time.sleep(0.2)
        told = lab.predict(run, api_name="/status")
    print(f"step {told['step']}: {told['phase']}")


if __name__ == "__main__":
    main()

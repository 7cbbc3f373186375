"""Run a preset without the page, and export the result: a PLY, a strip of views and a turntable film."""

from pathlib import Path

from sdlab.live.session import Session
from sdlab.settings import preset


def main(name: str = "toybox", steps: int = 400, out: Path = Path("out/01")) -> Session:
    settings = preset(name).patch_all([("prompt.text", "a red bear"), ("steps", steps), ("seed", 7)])
    session = Session(settings)  # on the CPU; Session(settings, "cuda") for a GPU
    session.run(until=steps)
    for file in session.export(out):
        print(file)
    return session


if __name__ == "__main__":
    main()

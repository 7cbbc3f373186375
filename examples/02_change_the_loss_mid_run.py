"""Change loss and prompt while a run is going, and listen to what the session reports."""

from pathlib import Path

from sdlab.live.messages import Applied, Event, Patch, Stepped
from sdlab.live.session import Session
from sdlab.settings import preset


def report(event: Event) -> None:
    match event:
        case Applied(step, path, value):
            print(f"from step {step} on: {path} = {value}")
        case Stepped(step, stats) if step % 100 == 0:
            print(f"step {step}: gradient {stats['grad_rms']:.3g}, {stats['n_gaussians']:.0f} Gaussians")


def main(name: str = "toybox", steps: int = 600, out: Path = Path("out/02")) -> Session:
    session = Session(preset(name).patch("steps", steps))
    session.listen(report)
    session.plan(steps // 3, Patch.one("active", "vdm"))
    session.plan(2 * steps // 3, Patch((("active", "sds"), ("prompt.text", "a blue bear"))))
    session.run(until=steps)
    session.export(out)
    return session


if __name__ == "__main__":
    main()

"""See what the loss sees: save one view of a step as the lens shows it, with the gradients of all losses compared."""

from pathlib import Path

from PIL import Image

from sdlab.live.messages import Compare
from sdlab.live.session import Session
from sdlab.pictures import grid
from sdlab.settings import preset


def main(name: str = "toybox", steps: int = 200, out: Path = Path("out/04")) -> Session:
    session = Session(preset(name).patch("steps", steps))
    session.watch_lens(True, row=0)
    session.send(Compare())  # a part between any two steps
    session.run(until=steps)
    out.mkdir(parents=True, exist_ok=True)
    seen = session.lens.get()
    if seen is not None and not seen.reason:
        for label, caption in zip(seen.labels, seen.captions, strict=True):
            print(f"{label}: {caption}")
        Image.fromarray(grid(seen.pictures)).resize((512, 512), Image.Resampling.NEAREST).save(out / "lens.png")
    compared = session.comparison.get()
    if compared is not None:
        print("cosines with", compared.losses[0], dict(zip(compared.losses, compared.cosines[0].round(2), strict=True)))
    return session


if __name__ == "__main__":
    main()

"""A loss of the user's own: a file of Python that --own-loss names, and that is read again when it changes.

The file is code and has all rights of the program. So only the command line names it, and only a server that no other
machine can reach has one (`sdlab.ui.server`). No page, link or file of settings loads code.

The class in the file is a `Distillation` as CONTRIBUTING.md describes it. Whatever it calls itself, its kind is "own",
so that settings that name it are recognised where there is no such file.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sdlab import settings
from sdlab.channel import Halted
from sdlab.errors import is_out_of_memory
from sdlab.files import write_whole
from sdlab.knobs import knobs_of, read_file
from sdlab.losses import Distillation
from sdlab.priors.mixture import MixturePrior
from sdlab.settings import OWN
from sdlab.types import BoundPrior, Guidance, Noised

REFERENCE = "sds"  # what an own loss is compared with
MOST = 100_000  # bytes of the file
PLACE = 7  # among the page's buttons: after those of the papers
METHODS = ("gradient", "fit", "init_aux", "calls")  # whose errors are located in the file
REHEARSED = (100, 800)  # timesteps: a loss may treat low and high noise differently
_numbers = itertools.count(1)

EXERCISE = '''\
"""A loss of your own. Change `gradient`; the next step follows it.

    x.z_t, x.t       the noised images, and their timesteps
    x.noise          the noise in them: z_t = x.alpha * x.z0 + x.sigma * x.noise
    model.eps(...)   what the prior takes for the noise, for "pos" (the prompt) and "uncond" (no prompt)

The exercise: make it SDS (DreamFusion, equation 3, with guidance),

    residual = eps_u + s (eps_c - eps_u) - noise

where s is self.cfg. So far it returns the part that the prompt alone adds.
"""

from dataclasses import dataclass
from typing import ClassVar

from sdlab.knobs import knob
from sdlab.losses import Distillation
from sdlab.types import Guidance


@dataclass(frozen=True)
class MyLoss(Distillation[None]):
    """A first attempt at SDS."""

    title: ClassVar[str] = "My loss"
    formula: ClassVar[str] = "w(t) [ eps_c - eps_u ]"

    cfg: float = knob(3.0, 0.0, 200.0, "s, the guidance scale")

    def gradient(self, x, model, aux):
        eps_c, eps_u = model.eps(x.z_t, x.t, "pos", "uncond")
        residual = eps_c - eps_u
        return Guidance(residual, {"pos": eps_c, "uncond": eps_u})
'''


class Flawed(ValueError):
    """An error in the file of an own loss. Its text names the file, the line if there is one, and what is wrong."""


def compiled(text: str, path: Path) -> type[Distillation]:
    """Return the loss in `text`, the content of the file `path`, after a rehearsal on a small prior. Runs the code.
    Flawed if that fails."""
    module = ModuleType(f"own_loss_{next(_numbers)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and type hints look names up there
    try:
        exec(compile(text, str(path), "exec"), vars(module))
        loss = _completed(_loss_in(module, path), text, path)
        _rehearse(loss, path)
    except Flawed:
        raise
    except (Exception, SystemExit) as e:
        raise _located(e, path) from e
    finally:
        del sys.modules[module.__name__]
    return loss


def _loss_in(module: ModuleType, path: Path) -> type[Distillation]:
    """Return the loss that a module defines. Flawed if there is none, or several."""
    found = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, Distillation) and cls.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = f"{len(found)} losses ({', '.join(cls.__name__ for cls in found)})" if found else "no loss"
        raise Flawed(f"{path.name} has {names}: it needs one class such as `class MyLoss(Distillation[None])`")
    loss = found[0]
    if inspect.isabstract(loss):
        raise Flawed(f"{path.name}: {loss.__name__} has no method `gradient(self, x, model, aux)`")
    if any(isinstance(value, dataclasses.Field) for value in vars(loss).values()):
        raise Flawed(f"{path.name}: {loss.__name__} has knobs and needs @dataclass(frozen=True) above it")
    return loss


def _completed(loss: type[Distillation], text: str, path: Path) -> type[Distillation]:
    """Give a loss its kind and code, what it does not say about itself, and errors that name its lines."""
    loss.kind, loss.code, loss.place = OWN, text, PLACE
    said = {"title": "My loss", "paper": f"your file {path.name}", "formula": "", "look_for": "what you expect of it"}
    for name, default in said.items():
        if not hasattr(loss, name):
            setattr(loss, name, default)
    for name in METHODS:
        if name in vars(loss):
            setattr(loss, name, _locating(getattr(loss, name), path))
    knobs_of(loss(), "")  # resolves the types of its fields while its module is known
    return loss


def _locating(method: Callable[..., Any], path: Path) -> Callable[..., Any]:
    @functools.wraps(method)
    def located(*args: Any, **named: Any) -> Any:
        try:
            return method(*args, **named)
        except (Halted, Flawed):
            raise
        except Exception as e:
            if is_out_of_memory(e):  # the step explains it
                raise
            raise _located(e, path) from e

    return located


def _located(e: BaseException, path: Path) -> Flawed:
    """Return an error that says where in the file `path` another was raised."""
    if isinstance(e, SyntaxError) and e.filename == str(path):
        line, what = e.lineno, e.msg
    else:
        lines = [n for frame, n in traceback.walk_tb(e.__traceback__) if frame.f_code.co_filename == str(path)]
        line, what = (lines[-1] if lines else None), str(e)
    where = path.name if line is None else f"{path.name}, line {line}"
    return Flawed(f"{where}: {type(e).__name__}: {what}".rstrip(": "))


@torch.no_grad()
def _rehearse(loss: type[Distillation], path: Path) -> None:
    """Let a loss without an auxiliary compute one gradient. Flawed if it returns something else."""
    one = loss()
    if loss.init_aux is not Distillation.init_aux:
        return
    prior = MixturePrior(height=8, width=8).load(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    z0, noise = (torch.randn(len(REHEARSED), *prior.shape, generator=generator) for _ in range(2))
    t = torch.tensor(REHEARSED)
    alpha, sigma = prior.marginal(t)
    conds = {role: prior.embed("" if role == "uncond" else role) for role in one.roles}
    conds = {role: type(c)(c.hidden.expand(len(t), *c.hidden.shape[1:])) for role, c in conds.items()}
    x = Noised(z0, noise, t, alpha, sigma, alpha * z0 + sigma * noise, z0 if one.needs_reference else None)
    found: Any = one.gradient(x, BoundPrior(prior, conds, texts=("",) * len(t)), None)
    if not isinstance(found, Guidance):
        raise Flawed(
            f"{path.name}: gradient returned a {type(found).__name__}, and must return Guidance(residual, ...)"
        )
    if not isinstance(found.residual, torch.Tensor) or found.residual.shape != z0.shape:
        shape = list(getattr(found.residual, "shape", []))
        raise Flawed(f"{path.name}: the residual has the shape {shape}, and must have that of x.z_t, {list(z0.shape)}")


def begin(path: Path) -> bool:
    """Write `EXERCISE` to the file `path` if there is none; return whether that was so. OSError if it cannot be
    written."""
    if path.exists():
        return False
    write_whole(path, EXERCISE)
    return True


class OwnLoss:
    """The file `path` and its last version without an error, which is adopted as a loss. May be used by any thread."""

    def __init__(self, path: Path) -> None:
        """Read the file. ValueError that says what is wrong with it."""
        self.path = path
        self.error = ""  # of the text in the file, "" if it is the version in use
        self.version = 0  # counts the texts that were read
        self._lock = threading.Lock()
        self._seen = self._state()
        self.text = self._read()
        self.loss = compiled(self.text, self.path)
        settings.adopt(self.loss)

    @property
    def name(self) -> str:
        """The name of the file, without its folder."""
        return self.path.name

    def look(self) -> bool:
        """Read the file again if it has changed on disk; return whether it had. An error is in `error`, and the version
        before it stays in use."""
        with self._lock:
            state = self._state()
            if state == self._seen:
                return False
            self._seen = state
            try:
                text = self._read()
            except ValueError as e:
                self.error = str(e)
                self.version += 1
                return True
            if text == self.text:
                return False
            self._use(text)
            return True

    def write(self, text: str) -> None:
        """Write the file, and use it as `look` does. ValueError if it cannot be written."""
        if len(text.encode("utf-8", "replace")) > MOST:
            raise ValueError(f"{self.name} would have {len(text):,} characters; the limit is {MOST:,} bytes")
        with self._lock:
            try:
                write_whole(self.path, text)
            except (OSError, UnicodeError) as e:
                raise ValueError(str(e)) from e
            self._seen = self._state()
            self._use(text)

    def _use(self, text: str) -> None:
        self.text = text
        self.version += 1
        try:
            self.loss = compiled(text, self.path)
        except ValueError as e:
            self.error = str(e)
        else:
            self.error = ""
            settings.adopt(self.loss)

    def _read(self) -> str:
        raw = read_file(self.path, MOST, f"--own-loss {self.path}")
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            raise ValueError(f"--own-loss {self.path}: it is not encoded in UTF-8: save it as UTF-8") from e

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

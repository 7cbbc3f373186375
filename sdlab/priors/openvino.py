"""What evaluates the frozen U-Net: torch anywhere, if wanted by torch.compile, or OpenVINO on a processor, where it is
2 to 4 times faster.

An engine answers `forward(z_t [B, C, H, W], t [B], hidden [B, L, D]) -> [B, out, H, W]` in float32, without gradient
and from any thread. OpenVINO is fast only with static shapes, so it holds one compiled model per batch size.

Files kept between runs, below `cache_folder()/openvino/<key>/` where the key covers the weights, the U-Net's
configuration and the versions of the libraries:

  network        the converted network, any shape, float32         (saves about 2 s per start)
  compiled-...   one compiled model per shape, precision, machine  (saves about 0.2 s each), also of networks that
                 learn beside it: their weights are no part of it  (saves about 5 s each)

Each file is sealed: the SHA-256 of its contents comes first, and it appears under its name only when complete. A
file that does not match is ignored and made anew, so that a full disk or a killed process costs time, not a run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdlab.errors import first_line
from sdlab.machine import n_cores
from sdlab.priors import Progress, silent

ENGINES = ("auto", "torch", "openvino", "compiled")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
KEPT_NETWORKS = 8  # of these the cache keeps the ones used last
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_converting = threading.Lock()  # tracing patches torch globally: one conversion at a time
_log = logging.getLogger(__name__)


class Shapes(NamedTuple):
    """The static shapes of one compiled network."""

    z_t: tuple[int, ...]  # B C H W
    hidden: tuple[int, ...]  # B L D


class EngineFailure(RuntimeError):
    """This engine cannot run this network here; the message is the reason, for people."""


@runtime_checkable
class Engine(Protocol):
    """Evaluates one frozen network. `torch_threads` is how many threads torch should have beside it."""

    name: str
    torch_threads: int

    def prepare(self, shapes: Shapes) -> None:
        """Whatever the first forward with these shapes would otherwise have to do. Raises EngineFailure."""
        ...

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        """The network's native prediction. Raises EngineFailure."""
        ...


class TorchEngine:
    """The reference: the module itself. On a processor the weights stay float32 and bf16 means autocast; elsewhere
    the weights are held in the precision asked for."""

    def __init__(self, unet: nn.Module, precision: str, threads: int = 0) -> None:
        self.name = f"torch {precision}"
        self.torch_threads = threads or n_cores()
        self._unet = unet
        self._autocast = precision == "bf16" and next(unet.parameters()).device.type == "cpu"

    def prepare(self, shapes: Shapes) -> None:
        """Eager torch has nothing to get ready."""

    @torch.no_grad()
    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        weights = next(self._unet.parameters()).dtype
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            out = self._unet(z_t.to(weights), t, encoder_hidden_states=hidden.to(weights), return_dict=False)[0]
        return out.float()


class CompiledEngine(TorchEngine):
    """The module by torch.compile, once for each shape; that takes a minute or so for a large network.

    Raises EngineFailure where it cannot be compiled, on a machine without a compiler for one.
    """

    def __init__(self, unet: nn.Module, precision: str, threads: int = 0) -> None:
        super().__init__(unet, precision, threads)
        self.name = f"torch.compile {precision}"
        compiled: Any = torch.compile(unet, dynamic=False)
        self._unet = compiled
        self._device = next(unet.parameters()).device

    def prepare(self, shapes: Shapes) -> None:
        z_t, hidden = (torch.zeros(shape, device=self._device) for shape in shapes)
        self.forward(z_t, torch.zeros(len(z_t), dtype=torch.int64, device=self._device), hidden)

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        try:
            return super().forward(z_t, t, hidden)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            raise EngineFailure(f"torch.compile failed: {first_line(e)}") from e


class OpenVinoEngine:
    """The network compiled for this processor, one compiled model per shape.

    `key` names the network in the cache (see `network_key`); `threads` 0 takes one per usable core.
    Raises EngineFailure when OpenVINO is missing or cannot convert the network.
    """

    def __init__(
        self, unet: nn.Module, shapes: Shapes, key: str, precision: str, threads: int, progress: Progress
    ) -> None:
        self._core = _openvino().Core()
        self._unet = unet
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": str(threads or n_cores()),
        }
        config: Any = unet.config
        # OpenVINO 2026.4 ends the process with a segmentation fault when it compiles, in float32, a group norm whose
        # scale is an input, as in DeepFloyd IF; without its subgraph compiler it does not, 5 % slower
        self._safe_options = options | ({"SNIPPETS_MODE": "DISABLE"} if precision == "fp32" else {})
        if config.resnet_time_scale_shift != "default":
            options = self._safe_options
        self.name = f"openvino {precision}"
        self.torch_threads = 1  # what torch still does is small, and its idle threads spin on OpenVINO's cores
        self._cache = SealedFolder(cache_folder() / "openvino" / key)
        self._network = self._converted(unet, shapes, progress)
        self._compiler = _Compiler(self._core, lambda _: self._network, options, self._cache)

    def prepare(self, shapes: Shapes) -> None:
        self._compiler(shapes, _example(self._unet, shapes))

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        with torch.no_grad():
            inputs = z_t, _waves(self._unet, z_t, t), hidden
            return self._compiler(Shapes(tuple(z_t.shape), tuple(hidden.shape)), inputs)(inputs)

    def twin(self, unet: nn.Module) -> OpenVinoTwin:
        """What asks `unet`, made from this network, while torch trains it."""
        return OpenVinoTwin(unet, self._core, self._safe_options, self._cache)

    def _converted(self, unet: nn.Module, shapes: Shapes, progress: Progress) -> Any:
        """The network as an OpenVINO model, from the cache or converted now."""
        packed = self._cache.read("network")
        if packed is not None:
            n = int.from_bytes(packed[:8], "big")
            try:
                return self._core.read_model(packed[8 : 8 + n], packed[8 + n :])
            except RuntimeError as e:
                _log.info("the cached network is of no use here (%s); converting anew", first_line(e))
        progress("converting the network for OpenVINO (once per model)")
        try:
            network = _convert(_Positional(unet), _example(unet, shapes))
        except Exception as e:
            raise EngineFailure(f"OpenVINO could not convert the network: {first_line(e)}") from e
        xml, weights = _serialised(network)
        self._cache.write("network", len(xml).to_bytes(8, "big") + xml + weights)
        forget_old_networks()
        return network


class OpenVinoTwin:
    """A U-Net with a camera (see `sdlab.priors.trainable`) that torch trains and OpenVINO answers for.

    What is trained is an input of the compiled network, read where torch keeps it: nothing is copied, and what was
    learnt counts at once. Unless the cache has met it, it is converted when it is first asked, which takes some 5 s.
    """

    def __init__(self, unet: nn.Module, core: Any, options: Mapping[str, str], cache: SealedFolder) -> None:
        self._unet = unet
        self._trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        self._network: Any = None
        # the frozen weights, if any, are those that the cache's folder is named after
        topology = {name: list(p.shape) for name, p in self._trained.items()} | {"peft": _version("peft")}
        self._compiler = _Compiler(core, self._converted, options, cache, topology)

    @torch.no_grad()
    def __call__(
        self,
        z_t: Float[Tensor, "B C H W"],
        t: Int[Tensor, " B"],
        hidden: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"],
    ) -> Float[Tensor, "B out H W"]:
        """The network's native prediction. Raises EngineFailure."""
        weights = [p.detach() for p in self._trained.values()]
        if not all(w.is_contiguous() and w.dtype == torch.float32 and w.device.type == "cpu" for w in weights):
            raise EngineFailure("OpenVINO cannot read weights of this layout where they lie")
        inputs = z_t, _waves(self._unet, z_t, t), hidden, camera
        network = self._compiler(Shapes(tuple(z_t.shape), tuple(hidden.shape)), (*inputs, *weights))
        return network(inputs, weights)

    def _converted(self, inputs: Sequence[Tensor]) -> Any:
        if self._network is None:
            try:
                self._network = _convert(_with_weights(self._unet, list(self._trained)), inputs)
            except Exception as e:
                raise EngineFailure(f"OpenVINO could not convert the network that learns: {first_line(e)}") from e
        return self._network


class _Compiler:
    """Networks compiled for static shapes, each made once and kept in `cache`.

    `network` answers the converted one of any shape for an example of its inputs; what sets it apart from others in
    the same folder is its `topology`.
    """

    def __init__(
        self,
        core: Any,
        network: Callable[[Sequence[Tensor]], Any],
        options: Mapping[str, str],
        cache: SealedFolder,
        topology: Mapping[str, Any] | None = None,
    ) -> None:
        self._core = core
        self._network = network
        self._options = dict(options)
        self._cache = cache
        self._topology = [topology] if topology is not None else []
        self._compiled: dict[Shapes, _CompiledNetwork] = {}
        self._compiling = threading.Lock()

    def __call__(self, shapes: Shapes, inputs: Sequence[Tensor]) -> _CompiledNetwork:
        """The network for inputs like these, among which are `shapes`. Raises EngineFailure."""
        with self._compiling:
            if shapes not in self._compiled:
                try:
                    self._compiled[shapes] = _CompiledNetwork(self._load(shapes, inputs))
                except EngineFailure:
                    raise
                except Exception as e:
                    raise EngineFailure(f"OpenVINO could not compile the network: {first_line(e)}") from e
            return self._compiled[shapes]

    def _load(self, shapes: Shapes, inputs: Sequence[Tensor]) -> Any:
        """The compiled model, from the cache or compiled now."""
        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        wanted = [list(shapes), self._options, processor, *self._topology]
        name = f"compiled-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}"
        blob = self._cache.read(name)
        if blob is not None:
            try:
                # without the same options the blob is read as another precision and answers nonsense
                return self._core.import_model(blob, "CPU", self._options)
            except RuntimeError as e:
                _log.info("the cached compiled network is of no use here (%s); compiling anew", first_line(e))
        static = self._network(inputs).clone()
        static.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
        compiled = self._core.compile_model(static, "CPU", self._options)
        self._cache.write(name, compiled.export_model().getvalue())
        return compiled


class _CompiledNetwork:
    """One compiled model; callers take turns, since with the LATENCY hint it uses all threads for each."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._out_shape = tuple(compiled.output(0).shape)
        self._turn = threading.Lock()
        self._weights: list[Tensor] = []

    def __call__(self, inputs: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Tensor:
        """The answer to `inputs`; `weights`, contiguous float32 on the processor, are the inputs behind them."""
        given = [x.detach().to("cpu", torch.float32).contiguous() for x in inputs]
        out = torch.empty(self._out_shape)
        with self._turn:  # OpenVINO reads and writes torch's memory: nothing is copied
            if [w.data_ptr() for w in weights] != [w.data_ptr() for w in self._weights]:
                self._set(weights, behind=len(given))
                self._weights = list(weights)  # as long as they are read, nothing else can come to lie there
            self._set(given)
            self._request.set_output_tensor(0, _shared(out))
            self._request.infer()
        return out

    def _set(self, tensors: Sequence[Tensor], behind: int = 0) -> None:
        for i, x in enumerate(tensors, behind):
            self._request.set_input_tensor(i, _shared(x))


def _shared(x: Tensor) -> Any:
    return _openvino().Tensor(x.numpy(), shared_memory=True)


# ---- choice -----------------------------------------------------------------------------------------------------


def resolve_precision(precision: str, device: torch.device, knob: str = "prior.precision") -> tuple[str, str]:
    """The precision to run in and, where that is not what was asked for, why.

    "auto" is bf16 on a processor that computes in it and fp32 on others, fp16 on an accelerator. Raises ValueError
    for fp16 on a processor, where it is slower than fp32; it names the `knob`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{knob} = {precision!r}: allowed is one of {', '.join(PRECISIONS)}")
    if device.type != "cpu":
        return ("fp16" if precision == "auto" else precision), ""
    if precision == "fp16":
        raise ValueError(f"{knob} = 'fp16' needs a GPU: on a processor use 'auto', 'bf16' or 'fp32'")
    if precision == "auto":
        return ("bf16" if cpu_has_bf16() else "fp32"), ""
    if precision == "bf16" and not cpu_has_bf16():
        return "fp32", "this processor does not compute in bf16: fp32 instead"
    return precision, ""


def weights_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In which number format the weights are held for a precision of `resolve_precision`."""
    return torch.float32 if device.type == "cpu" else _DTYPES[precision]


def choose_engine(
    engine: str,
    unet: nn.Module,
    weight_files: Sequence[Path],
    shapes: Shapes,
    precision: str,
    device: torch.device,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[Engine, str]:
    """The engine and, where it is not what was asked for, why.

    `weight_files` are those that `unet` was read from, `shapes` an example, `precision` as from `resolve_precision`.
    Torch stands in wherever OpenVINO cannot run. Raises ValueError for an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"prior.engine = {engine!r}: allowed is one of {', '.join(ENGINES)}")
    note = ""
    if engine == "compiled":
        return CompiledEngine(unet, precision, threads), ""
    if engine != "torch" and device.type == "cpu":
        try:
            config: Any = unet.config
            key = network_key(config, weight_files)
            return OpenVinoEngine(unet, shapes, key, precision, threads, progress), ""
        except EngineFailure as e:
            note = f"{e}; torch runs instead"
    elif engine == "openvino":
        note = f"OpenVINO runs on the processor only, not on {device.type}; torch runs instead"
    return TorchEngine(unet, precision, threads), note


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AMX or AVX512-bf16); elsewhere it would only be emulated."""
    with contextlib.suppress(EngineFailure):
        return "BF16" in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


# ---- conversion -------------------------------------------------------------------------------------------------


def _example(unet: nn.Module, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the compiled network: z_t, waves, hidden."""
    z_t = torch.zeros(shapes.z_t)
    return z_t, _waves(unet, z_t, torch.zeros(len(z_t), dtype=torch.int64)), torch.zeros(shapes.hidden)


def _with_weights(unet: nn.Module, trained: Sequence[str]) -> Callable[..., Tensor]:
    """A U-Net that is told a camera, as a function of z_t, waves, hidden, camera and the weights named `trained`."""
    net: Any = _Positional(unet).unet
    split = [name.rpartition(".") for name in trained]
    places = [(net.get_submodule(module)._parameters, name) for module, _, name in split]

    def place(weights: Sequence[Any]) -> None:
        for (home, name), weight in zip(places, weights, strict=True):
            home[name] = weight

    def answer(z_t: Tensor, waves: Tensor, hidden: Tensor, camera: Tensor, *weights: Tensor) -> Tensor:
        own = [home[name] for home, name in places]
        place(weights)  # torch.func.functional_call, which is for this, refuses to be traced
        try:
            return net(z_t, waves, encoder_hidden_states=hidden, class_labels=camera, return_dict=False)[0]
        finally:
            place(own)

    return answer


class _Positional(nn.Module):
    """The U-Net with positional arguments, a tensor answer, and the timestep already embedded as `waves` [B, T]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        shallow: Any = copy.copy(unet)  # its weights are those of `unet`, its methods its own
        shallow.get_time_embed = lambda sample, timestep: timestep
        self.unet = shallow

    def forward(self, z_t: Tensor, waves: Tensor, hidden: Tensor) -> Tensor:
        return self.unet(z_t, waves, encoder_hidden_states=hidden, return_dict=False)[0]


def _waves(unet: Any, z_t: Tensor, t: Tensor) -> Tensor:
    """The sinusoids of t [B] that the U-Net starts from, [B, T].

    They are computed in float32, outside the compiled network: in bf16 the integers above 256 are rounded to even
    ones, to multiples of 4 above 512, and t = 998 and 999 would get the same answer.
    """
    return unet.get_time_embed(sample=z_t, timestep=t)


@functools.cache
def _openvino() -> Any:
    """The openvino module. Raises EngineFailure when it cannot be imported.

    Its import reports usage to its makers unless its telemetry package is missing, so that is what it finds.
    """
    hidden = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except Exception as e:  # a missing system library shows as OSError or RuntimeError
        raise EngineFailure(f"OpenVINO is not available ({first_line(e)})") from e
    finally:
        sys.modules.pop("openvino_telemetry")
        if hidden is not None:
            sys.modules["openvino_telemetry"] = hidden


def _convert(network: Callable[..., Tensor], example: Sequence[Tensor]) -> Any:
    """`network` as an OpenVINO model of any batch size."""
    ov, example = _openvino(), tuple(example)
    with _converting, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch on a shape
        # left to the converter, tracing is done three times over, as a check, which takes 3.6 times as long
        traced = torch.jit.trace(network, example, check_trace=False, strict=False)
        return ov.convert_model(traced, example_input=example)


def _serialised(network: Any) -> tuple[bytes, bytes]:
    """The network's topology (xml) and weights; OpenVINO writes them to files only."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "network.xml"
        _openvino().save_model(network, xml, compress_to_fp16=False)
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()


def network_key(config: Mapping[str, Any], weight_files: Sequence[Path]) -> str:
    """A name for the network in the cache: it changes with its weights, its configuration and the libraries."""
    digest = hashlib.sha256(b"inputs z_t, waves, hidden")
    for file in sorted(weight_files):
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    shown = {k: v for k, v in config.items() if not k.startswith("_")}  # _name_or_path is where, not what
    digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
    for name in ("openvino", "torch", "diffusers"):
        digest.update(f"{name} {_version(name)}".encode())
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# ---- files ------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where compiled networks are kept: $SDLAB_CACHE, else the platform's folder for caches."""
    if "SDLAB_CACHE" in os.environ:
        return Path(os.environ["SDLAB_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "sdlab" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sdlab"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sdlab"


def forget_old_networks(keep: int = KEPT_NETWORKS) -> None:
    """Remove all but the `keep` networks used last, so that a model in training does not fill the disk."""
    with contextlib.suppress(OSError):
        folders = sorted((cache_folder() / "openvino").iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for folder in folders[keep:]:
            shutil.rmtree(folder, ignore_errors=True)


class SealedFolder:
    """Files that are either whole or not there. It never raises: a cache that cannot be used is no cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """The contents, or None where there is no such file or it is damaged."""
        try:
            sealed = (self.folder / name).read_bytes()
            os.utime(self.folder)  # remembers when the network was last used
        except OSError:
            return None
        seal, contents = sealed[:32], sealed[32:]
        if hashlib.sha256(contents).digest() != seal:
            _log.warning("%s is damaged and will be made anew", self.folder / name)
            return None
        return contents

    def write(self, name: str, contents: bytes) -> None:
        """Write or replace `name` in one move; a failure is logged."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _complete_or_absent(self.folder / name) as part:
                part.write_bytes(hashlib.sha256(contents).digest() + contents)
        except OSError as e:
            _log.warning("cannot keep the compiled network in %s (%s); set SDLAB_CACHE", self.folder, e)


@contextlib.contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)

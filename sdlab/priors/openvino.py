"""The OpenVINO engine: the U-Net compiled for the CPU, 2 to 4 times faster than torch there.

OpenVINO is fast only with static shapes, so there is one compiled network per batch size; `sdlab.priors.cache` keeps
them between runs.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import logging
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdlab.errors import first_line
from sdlab.machine import n_cores
from sdlab.priors import Progress
from sdlab.priors.cache import SealedFolder, network_folder, remove_old_networks, version
from sdlab.priors.engines import EngineFailure, Shapes

_converting = threading.Lock()  # tracing patches torch globally: one conversion at a time
_log = logging.getLogger(__name__)


class OpenVinoEngine:
    """The network compiled for this CPU, once per shape.

    `key` is the network's name in the cache (see `sdlab.priors.cache.network_key`); `threads` 0 uses every core.
    Raises EngineFailure when OpenVINO is missing or cannot convert the network.
    """

    def __init__(
        self, unet: nn.Module, shapes: Shapes, key: str, precision: str, threads: int, progress: Progress
    ) -> None:
        self._core = core()
        self._unet = unet
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": str(threads or n_cores()),
        }
        config: Any = unet.config
        # in float32, OpenVINO 2026.4 crashes with a segmentation fault when it compiles a group norm whose scale is an
        # input, as in DeepFloyd IF; without its subgraph compiler it does not, and is 5 % slower
        self._safe_options = options | ({"SNIPPETS_MODE": "DISABLE"} if precision == "fp32" else {})
        if config.resnet_time_scale_shift != "default":
            options = self._safe_options
        self.name = f"openvino {precision}"
        self.torch_threads = 1  # torch has little left to do, and its idle threads would spin on OpenVINO's cores
        self._cache = network_folder(key)
        self._network = self._converted(unet, shapes, progress)
        self._compiler = Compiler(self._core, lambda _: self._network, options, self._cache)

    def prepare(self, shapes: Shapes) -> None:
        self._compiler(shapes, _example(self._unet, shapes))

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], hidden: Float[Tensor, "B L D"]
    ) -> Float[Tensor, "B out H W"]:
        with torch.no_grad():
            inputs = z_t, _waves(self._unet, z_t, t), hidden
            return self._compiler(Shapes(tuple(z_t.shape), tuple(hidden.shape)), inputs)(inputs)

    def twin(self, unet: nn.Module) -> OpenVinoTwin:
        """Return an engine for `unet`, a copy of this network with a camera input, while torch trains it."""
        return OpenVinoTwin(unet, self._core, self._safe_options, self._cache)

    def _converted(self, unet: nn.Module, shapes: Shapes, progress: Progress) -> Any:
        """Return the network as an OpenVINO model, from the cache or converted now."""
        packed = self._cache.read("network")
        if packed is not None:
            n = int.from_bytes(packed[:8], "big")
            try:
                return self._core.read_model(packed[8 : 8 + n], packed[8 + n :])
            except RuntimeError as e:
                _log.info("the cached network cannot be used here (%s); converting it again", first_line(e))
        progress("converting the network for OpenVINO (once per model)")
        try:
            network = convert(_Positional(unet), _example(unet, shapes))
        except Exception as e:
            raise EngineFailure(f"OpenVINO could not convert the network ({first_line(e)})") from e
        xml, weights = _serialised(network)
        self._cache.write("network", len(xml).to_bytes(8, "big") + xml + weights)
        remove_old_networks()
        return network


class OpenVinoTwin:
    """A U-Net with a camera input (see `sdlab.priors.trainable`), trained by torch and evaluated by OpenVINO.

    The trained weights are inputs of the compiled network, read from torch's memory: nothing is copied, and an update
    takes effect at once. Unless it is cached, the network is converted at the first forward pass, in about 5 s.
    """

    def __init__(self, unet: nn.Module, core: Any, options: Mapping[str, str], cache: SealedFolder) -> None:
        self._unet = unet
        self._trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        self._network: Any = None
        # the frozen weights, if any, are the prior's, which the cache folder's key covers
        topology = {name: list(p.shape) for name, p in self._trained.items()} | {"peft": version("peft")}
        self._compiler = Compiler(core, self._converted, options, cache, topology)

    @torch.no_grad()
    def __call__(
        self,
        z_t: Float[Tensor, "B C H W"],
        t: Int[Tensor, " B"],
        hidden: Float[Tensor, "B L D"],
        camera: Float[Tensor, "B 16"],
    ) -> Float[Tensor, "B out H W"]:
        """Return the network's native prediction. Raises EngineFailure."""
        weights = [p.detach() for p in self._trained.values()]
        if not all(w.is_contiguous() and w.dtype == torch.float32 and w.device.type == "cpu" for w in weights):
            raise EngineFailure("OpenVINO cannot read trained weights that are not contiguous float32 on the CPU")
        inputs = z_t, _waves(self._unet, z_t, t), hidden, camera
        network = self._compiler(Shapes(tuple(z_t.shape), tuple(hidden.shape)), (*inputs, *weights))
        return network(inputs, weights)

    def _converted(self, inputs: Sequence[Tensor]) -> Any:
        if self._network is None:
            try:
                self._network = convert(_with_weights(self._unet, list(self._trained)), inputs)
            except Exception as e:
                raise EngineFailure(f"OpenVINO could not convert the network in training ({first_line(e)})") from e
        return self._network


class Compiler:
    """Compiles a network for static shapes, once each, and keeps the results in `cache`.

    `network` maps example inputs to the converted network for any shape; `topology` tells networks in the same cache
    folder apart.
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
        """Return the network compiled for inputs of these sizes; `shapes` are the sizes that vary.

        Raises EngineFailure.
        """
        with self._compiling:
            if shapes not in self._compiled:
                try:
                    self._compiled[shapes] = _CompiledNetwork(self.load(shapes, inputs))
                except EngineFailure:
                    raise
                except Exception as e:
                    raise EngineFailure(f"OpenVINO could not compile the network ({first_line(e)})") from e
            return self._compiled[shapes]

    def load(self, shapes: Shapes, inputs: Sequence[Tensor]) -> Any:
        """Return the compiled model from the cache, or compile it now."""
        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        wanted = [list(shapes), self._options, processor, *self._topology]
        name = f"compiled-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}"
        blob = self._cache.read(name)
        if blob is not None:
            try:
                # with other options the blob would be read in another precision and give wrong numbers
                return self._core.import_model(blob, "CPU", self._options)
            except RuntimeError as e:
                _log.info("the cached compiled network cannot be used here (%s); compiling it again", first_line(e))
        static = self._network(inputs).clone()
        static.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
        compiled = self._core.compile_model(static, "CPU", self._options)
        self._cache.write(name, compiled.export_model().getvalue())
        return compiled


class _CompiledNetwork:
    """One compiled model; callers take turns, because with the LATENCY hint each call uses all threads."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._out_shape = tuple(compiled.output(0).shape)
        self._turn = threading.Lock()
        self._weights: list[Tensor] = []

    def __call__(self, inputs: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Tensor:
        """Return the output for `inputs` followed by `weights`, which must be contiguous float32 on the CPU."""
        given = [x.detach().to("cpu", torch.float32).contiguous() for x in inputs]
        out = torch.empty(self._out_shape)
        with self._turn:  # OpenVINO reads and writes torch's memory without a copy
            if [w.data_ptr() for w in weights] != [w.data_ptr() for w in self._weights]:
                self._set(weights, behind=len(given))
                self._weights = list(weights)  # keeps their memory from being reused while OpenVINO reads it
            self._set(given)
            self._request.set_output_tensor(0, _shared(out))
            self._request.infer()
        return out

    def _set(self, tensors: Sequence[Tensor], behind: int = 0) -> None:
        for i, x in enumerate(tensors, behind):
            self._request.set_input_tensor(i, _shared(x))


def _shared(x: Tensor) -> Any:
    return library().Tensor(x.numpy(), shared_memory=True)


# ---- conversion -------------------------------------------------------------------------------------------------


def _example(unet: nn.Module, shapes: Shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Return example inputs of the converted network: z_t, waves, hidden."""
    z_t = torch.zeros(shapes.z_t)
    return z_t, _waves(unet, z_t, torch.zeros(len(z_t), dtype=torch.int64)), torch.zeros(shapes.hidden)


def _with_weights(unet: nn.Module, trained: Sequence[str]) -> Callable[..., Tensor]:
    """Return a U-Net with a camera input as a function of z_t, waves, hidden, camera and the weights in `trained`."""
    net: Any = _Positional(unet).unet
    split = [name.rpartition(".") for name in trained]
    places = [(net.get_submodule(module)._parameters, name) for module, _, name in split]

    def place(weights: Sequence[Any]) -> None:
        for (home, name), weight in zip(places, weights, strict=True):
            home[name] = weight

    def answer(z_t: Tensor, waves: Tensor, hidden: Tensor, camera: Tensor, *weights: Tensor) -> Tensor:
        own = [home[name] for home, name in places]
        place(weights)  # torch.func.functional_call would do this, but cannot be traced
        try:
            return net(z_t, waves, encoder_hidden_states=hidden, class_labels=camera, return_dict=False)[0]
        finally:
            place(own)

    return answer


class _Positional(nn.Module):
    """The U-Net with positional arguments, a tensor as output, and the timestep already embedded as `waves` [B, T]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        shallow: Any = copy.copy(unet)  # shares the weights of `unet`; only the method below is replaced
        shallow.get_time_embed = lambda sample, timestep: timestep
        self.unet = shallow

    def forward(self, z_t: Tensor, waves: Tensor, hidden: Tensor) -> Tensor:
        return self.unet(z_t, waves, encoder_hidden_states=hidden, return_dict=False)[0]


def _waves(unet: Any, z_t: Tensor, t: Tensor) -> Tensor:
    """Return the sinusoids [B, T] from which the U-Net embeds t [B].

    They are computed in float32, outside the compiled network: bf16 rounds integers above 256 to even numbers and
    those above 512 to multiples of 4, so t = 998 and 999 would give the same prediction.
    """
    return unet.get_time_embed(sample=z_t, timestep=t)


def core() -> Any:
    """Return the Core that all engines of the process share. Raises EngineFailure when openvino cannot be imported."""
    return _core_of(library())


@functools.cache
def _core_of(openvino: Any) -> Any:
    """Return a Core that is never destroyed: its CPU plugin gives the thread a signal stack on processors with AMX or
    AVX-512, frees it with itself, and the next signal, such as Ctrl-C, would end the process."""
    return openvino.Core()


@functools.cache
def library() -> Any:
    """Return the openvino module. Raises EngineFailure when it cannot be imported.

    On import, openvino reports usage to its makers unless its telemetry package is missing, so we hide that package.
    """
    hidden = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except Exception as e:  # a missing system library raises OSError or RuntimeError
        raise EngineFailure(f"OpenVINO is not available ({first_line(e)})") from e
    finally:
        sys.modules.pop("openvino_telemetry")
        if hidden is not None:
            sys.modules["openvino_telemetry"] = hidden


def convert(network: Callable[..., Tensor], example: Sequence[Tensor]) -> Any:
    """Return `network` as an OpenVINO model for any batch size."""
    ov, example = library(), tuple(example)
    with _converting, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about every Python branch on a shape
        # the converter would trace three times, to check the result, which takes 3.6 times as long
        traced = torch.jit.trace(network, example, check_trace=False, strict=False)
        return ov.convert_model(traced, example_input=example)


def _serialised(network: Any) -> tuple[bytes, bytes]:
    """Return the network's topology (XML) and weights; OpenVINO can only write them to files."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "network.xml"
        library().save_model(network, xml, compress_to_fp16=False)
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()

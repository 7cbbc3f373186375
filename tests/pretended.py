"""A pretended CUDA device on a CPU build of torch, for rehearsing the GPU path without a GPU.

Every storage carries a virtual device. Numbers are computed on the CPU as they are, but every operation is checked for
tensors of two devices, as CUDA would refuse them, and every place where the CPU would wait for the GPU is recorded with
the line of sdlab that caused it: reading a value, a result whose size depends on data, a copy to the computer's memory,
and a copy from memory that is not pinned.

Tensors that autograd or a C++ function creates on its own get no device of their own ("wild"): on a GPU they would be
made where they are needed.

Modes of torch belong to a thread: each thread that works on the pretended device enters `rehearsal.on()` itself.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
ROOT = Path(__file__).parents[1]
OURS = str(ROOT / "sdlab")


class Mismatch(RuntimeError):
    """An operation with tensors of two devices; CUDA would refuse it."""


class Wait(NamedTuple):
    """A place where the CPU waits for the GPU."""

    kind: str  # "read", "size", "download" or "upload"
    operation: str
    where: str  # file:line of sdlab, or "gsplat"


# ---- where a tensor is ------------------------------------------------------------------------------------------


class Tags:
    """A set of storages, forgotten when they die."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}
        self._lock = threading.RLock()

    def add(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        with self._lock:
            self._known[storage._cdata] = StorageWeakRef(storage)

    def discard(self, tensor: Tensor) -> None:
        with self._lock:
            self._known.pop(_storage(tensor)._cdata, None)

    def __contains__(self, tensor: Tensor) -> bool:
        return self.has(_storage(tensor)._cdata)

    def has(self, key: int) -> bool:
        """Return whether the storage at this address is in the set."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.expired():  # its address may serve another storage now
                del self._known[key]
                return False
            return known is not None


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():  # `Calls` has nothing to say about it
        return tensor.untyped_storage()


_cuda, _wild, _pinned = Tags(), Tags(), Tags()


def _really(tensor: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return torch._C.TensorBase.device.__get__(tensor)


def _place(tensor: Tensor) -> str:
    """Return "cuda", "wild" or "cpu", or "" for a tensor of another device, such as meta."""
    with torch._C.DisableTorchFunction():
        if torch._C.TensorBase.device.__get__(tensor).type != "cpu":
            return ""
        key = tensor.untyped_storage()._cdata
    return "cuda" if _cuda.has(key) else "wild" if _wild.has(key) else "cpu"


def is_cuda(tensor: Any) -> bool:
    """Return whether a tensor is on the pretended device."""
    return isinstance(tensor, Tensor) and _place(tensor) == "cuda"


def is_wild(tensor: Tensor) -> bool:
    return _place(tensor) == "wild"


def _on_cpu(tensor: Tensor) -> bool:
    return _place(tensor) == "cpu"


def _set(tensor: Any, cuda: bool) -> Any:
    """Move the storage of a tensor to the pretended device, or from it."""
    if isinstance(tensor, Tensor) and _really(tensor).type == "cpu":
        _wild.discard(tensor)
        (_cuda.add if cuda else _cuda.discard)(tensor)
    return tensor


def _is_cuda_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# ---- what happened ----------------------------------------------------------------------------------------------


class Record(threading.local):
    """What one thread does on the pretended device."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.quiet = 0  # while it is above zero, nothing is recorded: the inside of an emulated kernel
        self.called = False  # within a function called from Python


record = Record()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Record nothing in this block."""
    record.quiet += 1
    try:
        yield
    finally:
        record.quiet -= 1


def note(kind: str, operation: str, where: str = "") -> None:
    """Record a wait."""
    if not record.quiet:
        record.waits.append(Wait(kind, operation, where or _where()))


def _where() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return f"{Path(frame.f_code.co_filename).relative_to(OURS)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def refuse(what: str) -> None:
    raise Mismatch(f"{what} (at {_where()})")


# ---- below autograd: every operation ----------------------------------------------------------------------------

READS = {"aten._local_scalar_dense.default", "aten.is_nonzero.default", "aten.equal.default"}
SIZES = (
    "aten.nonzero",
    "aten.masked_select",
    "aten._unique2",
    "aten.bincount",
    "aten.repeat_interleave.Tensor",
    "aten.linalg_inv_ex",
    "aten._linalg_eigh",
    "aten.histc",
)
INDEXED = ("aten.index.Tensor", "aten.index_put", "aten._index_put", "aten._unsafe_index")
# these refuse a number of another device even if it is a single one
STRICT = (
    "aten.cat",
    "aten.stack",
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten.topk",
    "aten.gather",
    "aten.scatter",
    "aten.index_select",
    "aten.convolution",
    "aten._fused_adam",
    "aten._foreach",
)


_name_of = functools.cache(str)


def _found(kinds: tuple[type, ...], nodes: Iterable[Any]) -> Iterator[Any]:
    """Go through all values of these kinds, in lists, too."""
    for node in nodes:
        if isinstance(node, kinds):
            yield node
        elif isinstance(node, (list, tuple)):
            yield from _found(kinds, node)


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func)
        if name == "aten.copy_.default":
            return self._copy(func, args, kwargs)
        given = [*_found((Tensor, torch.Generator), args), *_found((Tensor, torch.Generator), kwargs.values())]
        tensors = [x for x in given if isinstance(x, Tensor)]
        places = [_place(x) for x in tensors]
        there, here = ([x for x, at in zip(tensors, places, strict=True) if at == place] for place in ("cuda", "cpu"))
        if there and len(given) > len(tensors):
            refuse(f"{name}: a generator of the CPU for a tensor on cuda")
        if there and here:
            self._check(name, args, there, here)
        if there:
            self._waits(name, args)
        device = kwargs.get("device")
        cuda = _is_cuda_device(device) if device is not None else bool(there)
        if name == "aten._to_copy.default" and not cuda and is_cuda(args[0]):
            cuda = True  # `Calls` has seen every change of device
        if _is_cuda_device(device):
            kwargs = {**kwargs, "device": CPU}
        out = func(*args, **kwargs)
        made = [x for x in _found((Tensor,), (out,)) if _really(x).type == "cpu"]
        inner = not record.called or torch._C._current_graph_task_id() != -1
        for x in made:
            if cuda:
                _set(x, True)
            elif not here and (tensors or inner):  # from wild ones, or from nothing
                _wild.add(x)
            else:
                _wild.discard(x)
        return out

    @staticmethod
    def _copy(func: Any, args: Any, kwargs: Any) -> Any:
        to, source, *rest = args
        if source.numel() and is_cuda(to) != is_cuda(source) and not (is_wild(to) or is_wild(source)):
            quick = bool(rest[0] if rest else kwargs.get("non_blocking", False))
            if not (quick and (source if is_cuda(to) else to) in _pinned):
                note("upload" if is_cuda(to) else "download", "copy_")
        return func(*args, **kwargs)

    @staticmethod
    def _check(name: str, args: Any, there: list[Tensor], here: list[Tensor]) -> None:
        if name.startswith(INDEXED):
            if _on_cpu(args[0]):
                refuse(f"{name}: a tensor on the CPU is indexed with one on cuda")
            for index in args[1]:
                if isinstance(index, Tensor) and _on_cpu(index):
                    note("upload", f"{name}, an index on the CPU")
            here = [x for x in args[2:] if isinstance(x, Tensor) and _on_cpu(x) and x.dim()]
            if here:
                refuse(f"{name}: a value on the CPU for a tensor on cuda")
            return
        if any(x.dim() for x in here) or name.startswith(STRICT):
            shapes = [[tuple(x.shape) for x in xs][:3] for xs in (here, there)]
            refuse(f"{name}: {shapes[0]} on the CPU, {shapes[1]} on cuda")

    @staticmethod
    def _waits(name: str, args: Any) -> None:
        if name in READS:
            note("read", name)
        elif name.startswith(SIZES):
            note("size", name)
        elif name.startswith(INDEXED) and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            note("size", f"{name}, a mask")


# ---- above autograd: what is called from Python -----------------------------------------------------------------

_DEVICE, _IS_CUDA, _IS_CPU = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
_NEW = (Tensor.new_tensor, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full, Tensor.new_empty)
_FROM_DATA = ("tensor", "as_tensor", "asarray")


class Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before, record.called = record.called, True
        try:
            special = _SPECIAL.get(func)
            if special is not None:
                return special(func, *args, **kwargs)
            if kwargs.get("pin_memory"):
                out = func(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})
                _pinned.add(out)
                return out
            if _is_cuda_device(kwargs.get("device")):
                return self._created(func, args, kwargs)
            return func(*args, **kwargs)
        finally:
            record.called = before

    @staticmethod
    def _created(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what a factory makes on the pretended device."""
        name = getattr(func, "__name__", "")
        if kwargs.get("generator") is not None:
            refuse(f"{name}: a generator of the CPU for device cuda")
        out = func(*args, **{**kwargs, "device": CPU})
        if name in _FROM_DATA:
            note("upload", name)
        return _set(out, True)


def _moved(x: Tensor, device: Any, dtype: Any = None, copy: bool = False, layout: Any = None, quick: bool = False):
    """As Tensor.to."""
    layout = torch.preserve_format if layout is None else layout
    if _really(x).type != "cpu" or (device is not None and torch.device(device).type not in ("cuda", "cpu")):
        return x.to(**({} if device is None else {"device": device}), dtype=dtype or x.dtype, memory_format=layout)
    cuda = is_cuda(x) if device is None else _is_cuda_device(device)
    if cuda == is_cuda(x) or is_wild(x):
        if is_wild(x) and device is not None:
            _set(x, cuda)
        return Tensor.to(x, dtype=dtype or x.dtype, copy=copy, memory_format=layout)
    if not (quick and cuda and x in _pinned):
        note("upload" if cuda else "download", "to")
    return _Move.apply(x, cuda, dtype or x.dtype, layout)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cuda: bool, dtype: torch.dtype, layout: Any) -> Tensor:
        ctx.cuda, ctx.dtype = is_cuda(x), x.dtype
        out = torch.empty_like(x, dtype=dtype, memory_format=layout)
        with quietly():
            out.copy_(x)
        return _set(out, cuda)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _set(grads[0].to(ctx.dtype).clone(), ctx.cuda), None, None, None


def _to(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, dtype, other = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other")
    flags: list[bool] = []
    for given in args:
        if isinstance(given, Tensor):
            other = given
        elif isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, bool):
            flags.append(given)
        elif given is not None:
            device = given
    if other is not None:
        device, dtype = (CUDA if is_cuda(other) else CPU), other.dtype
    quick = kwargs.get("non_blocking", flags[0] if flags else False)
    copy = kwargs.get("copy", flags[1] if len(flags) > 1 else False)
    return _moved(x, device, dtype, copy, kwargs.get("memory_format"), quick)


def _new(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device = kwargs.pop("device", None)
    cuda = is_cuda(x) if device is None else _is_cuda_device(device)
    out = func(x, *args, **kwargs)
    if cuda and func is Tensor.new_tensor:
        note("upload", "new_tensor")
    return _set(out, cuda)


def _tolist(func: Any, x: Tensor) -> Any:
    if not is_cuda(x):
        return func(x)
    note("download", "tolist")
    with torch._C.DisableTorchFunction(), quietly():
        return func(x)


def _numpy(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if is_cuda(x):
        refuse("numpy() of a tensor on cuda")
    return func(x, *args, **kwargs)


def _pin(func: Any, x: Tensor, *args: Any) -> Tensor:
    if is_cuda(x):
        refuse("pin_memory() of a tensor on cuda")
    out = x.detach().clone()
    _pinned.add(out)
    return out


def _deepcopy(func: Any, x: Tensor, memo: Any) -> Tensor:
    out = func(x, memo)
    return _set(out, True) if is_cuda(x) else out


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _DEVICE: lambda func, x: CUDA if is_cuda(x) else _really(x),
    _IS_CUDA: lambda func, x: is_cuda(x),
    _IS_CPU: lambda func, x: not is_cuda(x) and _really(x).type == "cpu",
    Tensor.cuda: lambda func, x, *_, **__: _moved(x, CUDA),
    Tensor.cpu: lambda func, x, *_, **__: _moved(x, CPU),
    Tensor.to: _to,
    Tensor.type_as: lambda func, x, other: _moved(x, CUDA if is_cuda(other) else CPU, other.dtype),
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
    Tensor.pin_memory: _pin,
    Tensor.is_pinned: lambda func, x, *_: x in _pinned,
    Tensor.__deepcopy__: _deepcopy,
    **dict.fromkeys(_NEW, _new),
}


# ---- the device -------------------------------------------------------------------------------------------------


class Autocast(torch.autocast):
    """The context of torch, for the CPU where CUDA was asked for."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Event:
    """A CUDA event on a GPU that has always finished."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        note("read", "Event.synchronize")


def _grouped(original: Any) -> Any:
    """Group an optimiser's tensors by their pretended devices."""

    def group(lists: Any, with_indices: bool = False) -> Any:
        found = {}
        for (device, dtype), (tensors, indices) in original(lists, with_indices).items():
            kinds = {is_cuda(t) for each in tensors for t in each if t is not None and not is_wild(t)}
            if len(kinds) > 1:
                refuse("an optimiser's tensors are on two devices")
            found[CUDA if kinds == {True} else device, dtype] = (tensors, indices)
        return found

    return group


class Rehearsal:
    """The pretended device, once it is installed."""

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Let this thread see the pretended device."""
        with Operations(), Calls():
            yield

    def waits(self, work: Callable[[], Any]) -> list[Wait]:
        """Do `work` and return where this thread waited for the GPU."""
        before, record.waits = record.waits, []
        try:
            work()
            return record.waits
        finally:
            record.waits = before


def counted(waits: list[Wait]) -> Counter[str]:
    """Return how often each line waited."""
    return Counter(f"{wait.where} {wait.kind}" for wait in waits)


def install(patch: pytest.MonkeyPatch) -> Rehearsal:
    """Pretend that this machine has a CUDA device, until `patch` is undone."""
    patch.setattr(torch, "autocast", Autocast)
    patch.setattr(torch.amp, "autocast", Autocast)
    foreach, optim = (importlib.import_module(f"torch.{name}") for name in ("utils._foreach_utils", "optim.optimizer"))
    group = _grouped(foreach._group_tensors_by_device_and_dtype)
    patch.setattr(foreach, "_group_tensors_by_device_and_dtype", group)
    patch.setattr(optim, "_group_tensors_by_device_and_dtype", group, raising=False)
    patch.setattr(optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(group))
    stream = SimpleNamespace(synchronize=lambda: note("read", "synchronize"))
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (8, 9),
        "get_device_name": lambda *_: "a pretended GPU",
        "mem_get_info": lambda *_: (20 * 2**30, 24 * 2**30),
        "empty_cache": lambda: None,
        "synchronize": lambda *_: note("read", "synchronize"),
        "current_stream": lambda *_: stream,
        "max_memory_allocated": lambda *_: 2**30,
        "reset_peak_memory_stats": lambda *_: None,
        "Event": Event,
    }
    for name, value in cuda.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.version, "cuda", "13.0")
    # optimisers ask its stream whether a graph is captured; builds with CUDA would look for a driver
    patch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    return Rehearsal()


def in_every_session(patch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    """Let the threads of all sessions see the pretended device."""
    from sdlab.live.session import Session

    original = Session.run

    @functools.wraps(original)
    def run(self: Session, *args: Any, **kwargs: Any) -> None:
        with rehearsal.on():
            original(self, *args, **kwargs)

    patch.setattr(Session, "run", run)

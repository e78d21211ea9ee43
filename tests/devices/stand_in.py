"""A device that needs no GPU: tensors with real numbers on the CPU, and CUDA's rules.

The device is a PrivateUse1 backend named ``standin``. Its tensors wrap a tensor on the CPU. As on CUDA:

- An operation on tensors of two devices is an error. Exceptions are copies, indices on the CPU, and CPU tensors without
  dimensions in pointwise operations.
- Random numbers come from a generator of the device's own, which ``torch.manual_seed`` seeds.
- Some operations make the host wait for the device's work. ``recorded_waits`` counts them by the line that causes them.

CUDA's streams and precision are not imitated: the numbers are those of the CPU.
"""

import collections
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "standin"
UNPINNED = 64 * 1024  # bytes; CUDA copies so much from memory that is not pinned without waiting for the device
aten = torch.ops.aten
Waits = collections.Counter  # (kind, place) -> count


class StandIn(Tensor):
    """A tensor of the device.

    Args:
        raw: its numbers, on the CPU.
    """

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor):
        strided = (
            {"strides": raw.stride(), "storage_offset": raw.storage_offset()} if raw.layout == torch.strided else {}
        )
        with torch.inference_mode(raw.is_inference()):  # a view of a normal tensor is one in inference mode too
            wrapper = Tensor._make_wrapper_subclass(
                cls, raw.size(), dtype=raw.dtype, layout=raw.layout, device=device(), **strided
            )
        wrapper.raw = raw
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _execute(func, args, kwargs or {})

    def __repr__(self, **_) -> str:
        return f"StandIn({self.raw!r})"

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.ndim == 0 else repr(self)

    def __reduce_ex__(self, protocol):
        return self.raw.detach().clone().__reduce_ex__(protocol)  # files hold CPU tensors

    def tolist(self):
        wait("tolist")
        return self.raw.tolist()


def device() -> torch.device:
    return torch.device(NAME, 0)


def is_here(place: Any) -> bool:
    """Whether a device, or its name, is this one."""
    return place is not None and not isinstance(place, int) and torch.device(place).type == NAME


# ---- use ------------------------------------------------------------------------------------------------------------


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """The device exists within this context."""
    _register()
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to makes new parameters
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        stack.callback(setattr, _Module, "available", _Module.available)
        _Module.available = True
        stack.enter_context(_Operations())
        stack.enter_context(_Functions())
        yield device()


@contextmanager
def recorded_waits() -> Iterator[Waits]:
    """Counts the points where the host waits for the device, by kind and place, while the context lasts."""
    global _log
    before, _log = _log, Waits()
    try:
        yield _log
    finally:
        _log = before


_log: Waits | None = None


def wait(kind: str) -> None:
    """Note that the host waits for the device here."""
    if _log is not None:
        _log[kind, _place()] += 1


def _place() -> str:
    """File and function of the package (or of the test) that is being executed; else the library's."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if "site-packages" in file:
            if "/torch/_" not in file:
                library = library or f"{file.split('site-packages/')[1]}:{function}"
        elif "/fgssl/" in file and "/fgssl/cli/" not in file:
            return f"fgssl/{file.rsplit('/fgssl/', 1)[1]}:{function}"
        frame = frame.f_back
    return library


# ---- what the device is for torch -----------------------------------------------------------------------------------


class _Module:
    """``torch.standin``: the counterpart of ``torch.cuda``."""

    available = False
    state = torch.Generator().manual_seed(0).get_state()

    @classmethod
    def is_available(cls) -> bool:
        return cls.available

    is_initialized = is_available

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def is_autocast_available() -> bool:
        return True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        cls.state = torch.Generator().manual_seed(seed).get_state()

    @classmethod
    def get_rng_state(cls, *_) -> Tensor:
        return cls.state

    @classmethod
    def set_rng_state(cls, state: Tensor, *_) -> None:
        cls.state = state


@functools.cache
def _register() -> None:
    """Name the PrivateUse1 backend; once in a process, and for good."""
    from torch.utils import backend_registration as backends

    class Hook(backends._DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return _Module.available

    backends._setup_privateuseone_for_python_backend(NAME, backend_module=_Module, hook=Hook())
    _register.library = torch.library.Library("_", "IMPL")  # type: ignore[attr-defined]  # lives as long as this does
    _register.library.fallback(lambda func, *args, **kwargs: _execute(func, args, kwargs), "PrivateUse1")  # type: ignore[attr-defined]


class _Operations(TorchDispatchMode):
    """Sends operations that make tensors of the device, and those on its tensors, to ``_execute``."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_here(kwargs.get("device")) or any(isinstance(x, StandIn) for x in _tensors(args, kwargs)):
            return _execute(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Functions of torch that do not come to ``_Operations``, or not as operations."""

    def __init__(self):
        super().__init__()
        self.pinned: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_here(kwargs.get("device")):
            place = kwargs.pop("device")
            host = args[0].raw if isinstance(args[0], StandIn) else func(*args, **kwargs)
            return host.to(place)
        if func is Tensor.pin_memory:
            return _pin(args[0])
        if func is Tensor.is_pinned:
            return _is_pinned(args[0])
        return func(*args, **kwargs)


def _pin(x: Tensor) -> Tensor:
    if isinstance(x, StandIn):
        raise RuntimeError("cannot pin a tensor of the device: only dense CPU tensors can be pinned")
    pinned = x.clone()
    pinned.untyped_storage()._is_pinned_here = True
    return pinned


def _is_pinned(x: Tensor) -> bool:
    return getattr(x.untyped_storage(), "_is_pinned_here", False)


# ---- operations -----------------------------------------------------------------------------------------------------

COPIES = {aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default, aten.set_.source_Tensor}
GETS = {aten.index.Tensor}
SETS = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operations whose result has a size, or whose check has an outcome, that the host must know.
WAITING = {
    "_linalg_check_errors", "_local_scalar_dense", "_unique", "_unique2", "allclose", "bincount", "equal", "histc",
    "is_nonzero", "masked_select", "multinomial", "nonzero", "unique_consecutive", "unique_dim",
}  # fmt: skip


def _execute(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Execute an operation by the rules of the device, with the numbers of the CPU."""
    if func._schema.name == "aten::to":  # comes undivided in inference mode
        return _to(**dict(zip((x.name for x in func._schema.arguments), args, strict=False)), **kwargs)
    operands = _tensors(args, kwargs)
    ours = [x for x in operands if isinstance(x, StandIn)]
    if ours:
        _refuse_two_devices(func, args, operands)
        _note_waits(func, args, kwargs)
    if func is aten._to_copy.default:
        return _to_copy(*args, **kwargs)
    if func is aten.copy_.default and len(ours) == 1:
        _note_copy(args[1], args[0], non_blocking=bool(kwargs.get("non_blocking") or (args[2:] and args[2])))
    goes_to_cpu = "device" in kwargs and kwargs["device"] is not None and not is_here(kwargs["device"])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    unwrapped = [_replaced(x, StandIn, lambda x: x.raw) for x in args]
    options = {name: _replaced(x, StandIn, lambda x: x.raw) for name, x in kwargs.items()}
    with _random_numbers_of_the_device(func):
        result = func(*unwrapped, **options)
    if goes_to_cpu or (func is aten.copy_.default and not isinstance(args[0], StandIn)):
        return result
    if ours and result is ours[0].raw and result.shape != ours[0].shape:  # squeeze_ and the like
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)  # on the wrapper's own sizes
    wrappers = {id(x.raw): x for x in ours}  # an operation in place returns its operand
    return _replaced(result, Tensor, lambda raw: wrappers[id(raw)] if id(raw) in wrappers else StandIn(raw))


def _tensors(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors among the arguments of an operation, and in lists among them."""
    found = []
    for x in (*args, *kwargs.values()):
        found += [y for y in (x if isinstance(x, list | tuple) else (x,)) if isinstance(y, Tensor)]
    return found


def _replaced(x: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """An argument or a result with each tensor of a kind replaced, also in a list."""
    if isinstance(x, kind):
        return by(x)
    return type(x)(_replaced(y, kind, by) for y in x) if isinstance(x, list | tuple) else x


def _refuse_two_devices(func: Any, args: tuple, operands: list[Tensor]) -> None:
    """Raise CUDA's error where an operation has operands on two devices."""
    strangers = [x for x in operands if not isinstance(x, StandIn)]
    if not strangers or func in COPIES:
        return
    if func in GETS | SETS:
        values = args[2:3] if func in SETS else ()
        allowed = isinstance(args[0], StandIn) and all(isinstance(x, StandIn) or x.ndim == 0 for x in values)
    else:
        scalars = torch.Tag.pointwise in func.tags or func in (aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
        allowed = scalars and all(x.ndim == 0 for x in strangers) and not _writes_to(func, args, strangers)
    if not allowed:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {device()} and cpu ({func})")


def _writes_to(func: Any, args: tuple, tensors: list[Tensor]) -> bool:
    return func._schema.is_mutable and any(args[0] is x for x in tensors)


def _note_waits(func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    name = func._schema.name.removeprefix("aten::")
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        wait("item" if name == "_local_scalar_dense" else name)
    if name in ("masked_fill", "masked_fill_") and isinstance(args[2], StandIn):
        wait("masked_fill by a tensor")  # reads the value
    if func in GETS | SETS:
        indices = [i for i in args[1] if i is not None]
        one_value = func in SETS and not isinstance(args[2], StandIn)  # is a masked_fill
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices) and not one_value:
            wait("mask as index")
        if not all(isinstance(i, StandIn) for i in indices):
            wait("index on the CPU")


def _to(self: Tensor, other: Tensor | None = None, copy: bool = False, **options: Any) -> Tensor:
    if other is not None:
        options |= {"device": other.device, "dtype": other.dtype}
    stays = options.get("device") is None or is_here(options["device"]) == isinstance(self, StandIn)
    if stays and not copy and options.get("dtype") in (None, self.dtype):
        return self
    return _to_copy(self, **options)


def _to_copy(source: Tensor, *, device=None, non_blocking=False, pin_memory=None, **kwargs) -> Tensor:
    here, goes_here = (
        isinstance(source, StandIn),
        is_here(device) if device is not None else isinstance(source, StandIn),
    )
    raw = source.raw if here else source
    result = aten._to_copy.default(raw, **kwargs)
    if here and not goes_here and non_blocking:
        result = _pin(result)  # torch allocates it so
    if here != goes_here:
        _note_copy(source, StandIn(result) if goes_here else result, non_blocking)
    return StandIn(result) if goes_here else result


def _note_copy(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    """Note the wait of a copy between the CPU and the device, if it is one."""
    to_device, host = (True, source) if isinstance(target, StandIn) else (False, target)
    small = to_device and host.numel() * host.element_size() <= UNPINNED
    if not non_blocking:
        wait("copy to the device" if to_device else "copy to the CPU")
    elif not _is_pinned(host) and not small:
        wait("copy to the device, not pinned" if to_device else "copy to the CPU, not pinned")


@contextmanager
def _random_numbers_of_the_device(func: Any) -> Iterator[None]:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    of_cpu = torch.get_rng_state()
    torch.set_rng_state(_Module.state)
    try:
        yield
    finally:
        _Module.state = torch.get_rng_state()
        torch.set_rng_state(of_cpu)

"""Looks at arrays on CUDA devices: what the library accepts without a copy, where it lies, and on whose stream work on
it runs.

Importing this module loads no cupy; whoever has an array on a device has what its functions need.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from math import prod
from typing import Any

import numpy as np

from fastadam.arrays.host import Array, Host, describe, extent, flat, memory_order
from fastadam.kernels.formats import BFLOAT16, FLOATS

ALIGNED = 256  # bytes: what CUDA's own allocations are aligned to


def status() -> str:
    """Return "ready", or why CUDA cannot run here, and the command that mends it."""
    try:
        import cupy

        driver, built = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    except Exception as error:
        return f"cupy cannot be imported ({error}); pip install cupy-cuda13x, or cupy-cuda12x for an older driver"
    if int(cupy.__version__.partition(".")[0]) < 14:
        return f"cupy is {cupy.__version__}, expected 14.2 or newer; pip install --upgrade cupy-cuda{built // 1000}x"
    if driver == 0:
        return "no NVIDIA driver is loaded; install one, then nvidia-smi lists its devices"
    if driver // 1000 < built // 1000:
        return f"the driver is for CUDA {driver // 1000}, cupy for {built // 1000}; pip install cupy-cuda12x"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"no CUDA device can be used ({error}); nvidia-smi lists them, CUDA_VISIBLE_DEVICES hides them"
    none = "no CUDA device is visible; nvidia-smi lists them, CUDA_VISIBLE_DEVICES hides them"
    return "ready" if count else none


def on_device(x: Any) -> bool:
    """Return whether x is an array, or a FlatBuffer, in the memory of a CUDA device. Loads nothing."""
    x = getattr(x, "array", x) if hasattr(x, "views") else x
    if isinstance(x, (np.ndarray, np.generic)):
        return False
    if hasattr(x, "is_cuda"):  # torch's tensors have __cuda_array_interface__ wherever they lie
        return bool(x.is_cuda)
    if type(x).__module__ == "cupy":
        return True
    try:  # a property of all of JAX's arrays, which raises for those on the host
        if x.__cuda_array_interface__ is not None:
            return True
    except Exception:
        pass
    return hasattr(x, "__dlpack_device__") and x.__dlpack_device__()[0] in (2, 13)  # kDLCUDA, kDLCUDAManaged


def _view(name: str, x: Any, written: bool) -> Any:
    """Return the same memory as a cupy.ndarray; x may be any object with __cuda_array_interface__ or DLPack."""
    import cupy

    if isinstance(x, cupy.ndarray):
        return x
    if not on_device(x):
        raise TypeError(f"{name} is {describe(x)}, expected an array on a CUDA device: cupy.asarray({name}) makes one")
    family = type(x).__module__.partition(".")[0]
    if written and family in ("jax", "jaxlib"):
        raise TypeError(f"{name} is {describe(x)}, which JAX forbids to change: expected an array of another library")
    if hasattr(x, "detach"):
        x = x.detach()
    if str(getattr(x, "dtype", None)) == f"torch.{BFLOAT16.name}":  # no array interface has a name for it
        return _view(name, x.view(sys.modules["torch"].int16), written).view(BFLOAT16.dtype)
    if not hasattr(x, "__cuda_array_interface__"):
        return cupy.from_dlpack(x)
    # Not cupy.asarray, which waits on the host for the owner's stream.
    interface = x.__cuda_array_interface__
    (address, read_only), shape = interface["data"], tuple(interface["shape"])
    if written and read_only:
        raise ValueError(f"{name} is read-only, expected an array that can be updated in place")
    if interface.get("mask") is not None:
        raise TypeError(f"{name} has a mask, expected a plain array")
    dtype = np.dtype(interface["typestr"])
    if 0 in shape:
        return cupy.empty(shape, dtype)
    if not address or address % dtype.itemsize:
        raise ValueError(
            f"{name} is {describe(x)} at address {address or 0:#x}, expected a multiple of {dtype.itemsize} above 0"
        )
    strides = interface.get("strides") or tuple(dtype.itemsize * prod(shape[k + 1 :]) for k in range(len(shape)))
    ends = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    low, high = sum(e for e in ends if e < 0), sum(e for e in ends if e > 0) + dtype.itemsize
    memory = cupy.cuda.UnownedMemory(address + low, high - low, x)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, -low), strides)


class _ForeignStream:
    """Wraps a stream that another library owns, as CuPy takes it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def foreign(x: Any) -> bool:
    """Return whether another library than CuPy, whose arrays FlatBuffers hold, owns an array on a device."""
    import cupy

    return not hasattr(x, "views") and type(x) is not cupy.ndarray


def stream_of(x: Any) -> Any:
    """Return the stream on which the owner of x works with it; None for CuPy's arrays and for owners that name none."""
    import cupy

    if x is None or isinstance(x, cupy.ndarray):
        return None
    if hasattr(x, "is_cuda"):
        handle = sys.modules["torch"].cuda.current_stream(x.device).cuda_stream
    else:
        handle = getattr(x, "__cuda_array_interface__", {}).get("stream")
    if handle is None:
        return None
    if handle in (0, 1):  # the default stream, as a pointer and as __cuda_array_interface__ calls it
        return cupy.cuda.Stream.null
    return cupy.cuda.Stream.ptds if handle == 2 else cupy.cuda.Stream.from_external(_ForeignStream(int(handle)))


def _wait(first: Any, second: Any) -> None:
    """Let what comes next on one stream come after what another has to do."""
    first.wait_event(second.record())


def joined(others: Iterable[Any]) -> ExitStack:
    """Within it the current stream comes after what other streams have to do; they wait for it afterwards."""
    import cupy

    stack, current = ExitStack(), cupy.cuda.get_current_stream()
    for other in others:
        if other is not None and other.ptr != current.ptr:
            _wait(current, other)
            stack.callback(_wait, other, current)
    return stack


class Device(Host):
    """Is the memory of CUDA devices, through CuPy."""

    @staticmethod
    def near(arrays: Iterable[Any], owners: Sequence[Any] = ()) -> AbstractContextManager[Any]:
        """Return their device, the current one where there are none; and the stream of the first owner that is not
        CuPy."""
        import cupy

        first: Any = next(iter(arrays), None)
        stack, ndarray = ExitStack(), cupy.ndarray
        stack.enter_context(cupy.cuda.Device() if first is None else first.device)
        owner = next((x for x in owners if type(x) is not ndarray and foreign(x)), None)
        stack.enter_context(stream_of(owner) or nullcontext())
        return stack

    @staticmethod
    def owned(name: str, x: Any) -> Array:
        view = _view(name, x, written=True)
        if view.dtype.name not in FLOATS or not view.dtype.isnative:
            expected = f"one of {', '.join(FLOATS)}, in native byte order"
            raise TypeError(f"{name} is {view.dtype.str} ({describe(view)}), expected {expected}")
        if flat(view) is None:
            raise ValueError(
                f"{name} has strides {view.strides} for shape {view.shape}, expected dense memory in any axis order, "
                "without gaps"
            )
        owned: Array = view
        return owned

    @staticmethod
    def is_array(x: Any) -> bool:
        return on_device(x)

    @staticmethod
    def read(x: Any, name: str = "the array") -> Array:
        view: Array = _view(name, x, written=False)
        return view

    @staticmethod
    def to_write(name: str, x: Any) -> Array:
        view: Array = _view(name, x, written=True)
        return view

    @staticmethod
    def allocate(n: int, dtype: Any) -> Array:
        import cupy

        zeros: Array = cupy.zeros(n, dtype)
        return zeros

    @staticmethod
    def allocate_beside(params: Sequence[Array], column: int, dtype: Any, sizes: Sequence[int]) -> list[Array]:
        """Return flat zeros of a dtype and these sizes, for each of these parameters, in one piece of memory.

        Each lies as its parameter does within the bytes of one access, so that both can be accessed whole. Bytes are
        those of blocks, which are accessed from their own start.
        """
        import cupy

        starts, end, width = [], 0, np.dtype(dtype).itemsize
        for p, size in zip(params, sizes, strict=True):
            place = extent(p)[0] % ALIGNED * width // p.itemsize if p.size and width > 1 else 0
            starts.append(-(-end // ALIGNED) * ALIGNED + place // width * width if p.size else end)
            end = starts[-1] + size * width
        with Device.near(params):
            memory = cupy.zeros(end, np.uint8)
        return [memory[at : at + size * width].view(dtype) for at, size in zip(starts, sizes, strict=True)]

    @staticmethod
    def get(x: Array) -> Array:
        copied: Array = x.get()  # type: ignore[attr-defined]
        return copied

    @staticmethod
    def put(x: Array) -> Array:
        import cupy

        order = memory_order(x)
        straight: Array = cupy.asarray(np.asarray(x.transpose(order), order="C"))
        return straight.transpose(np.argsort(order).tolist())

    @staticmethod
    def write(x: Array, values: Array) -> None:
        import cupy

        order = memory_order(x)
        straight: Any = x.transpose(order)
        with Device.near([x]):
            given = np.asarray(values.transpose(order), order="C")
            if straight.flags.c_contiguous:
                straight.set(given)
            else:  # such as the codes of blocks, between which scales lie
                straight[...] = cupy.asarray(given)


def home_of(leaves: Iterable[Any]) -> Host:
    """Return where a tree of arrays lies: on a device if any does."""
    return DEVICE if any(map(on_device, leaves)) else HOST


HOST, DEVICE = Host(), Device()

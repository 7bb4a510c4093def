"""Lays named tensors out as they lie in a file: Piece, a part of one in memory; Image, the bytes of a file of them.

The file is a safetensors file: 8 bytes, the length of a text of JSON; the text; the tensors, end to end
(huggingface.co/docs/safetensors, "Format"). The text is filled up so that the tensors begin at a page.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from fastadam.arrays.host import PAGE, Array
from fastadam.kernels.formats import FLOATS

NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "bool": "BOOL",
}  # fmt: skip


@cache
def numpy_dtype(name: str) -> Any:
    """Return the NumPy dtype of a name; ml_dtypes has some."""
    return FLOATS[name].dtype if name in FLOATS else np.dtype(name)


def itemsize(name: str) -> int:
    """Return the bytes of one element."""
    return FLOATS[name].bytes if name in FLOATS else np.dtype(name).itemsize


@dataclass(frozen=True)
class Piece:
    """Holds consecutive elements of a named tensor, counted in C order, and the array that has them.

    stream, path: its name is both, one after the other: params['w'].
    shape: of the whole tensor. start, count: which of its elements.
    values: an array, on the host or on a device, that begins with them, in C order; of bfloat16 any dtype of 2 bytes.
    coded: for codes of 8 bits, what they decode to: see contents.py.
    """

    stream: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    count: int
    values: Any
    coded: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return what the whole tensor is called."""
        return self.stream + self.path

    @property
    def nbytes(self) -> int:
        return self.count * itemsize(self.dtype)

    @property
    def key(self) -> str:
        """Return what it is called in its file."""
        is_uncut = self.count == prod(self.shape)
        return self.name if is_uncut else f"{self.name} {self.start}:{self.start + self.count}"


class Image:
    """Is the bytes of one file, made as they are asked for.

    size: how many there are. offsets: where each piece begins.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = sorted(
            pieces, key=lambda piece: -itemsize(piece.dtype)
        )  # so that each is aligned to its elements
        ends = list(accumulate((piece.nbytes for piece in self.pieces), initial=0))
        entries: dict[str, Any] = {"__metadata__": {"format": "np"}}
        for piece, first, end in zip(self.pieces, ends, ends[1:], strict=False):
            shape = list(piece.shape) if piece.count == prod(piece.shape) else [piece.count]
            entries[piece.key] = {"dtype": NAMES[piece.dtype], "shape": shape, "data_offsets": [first, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        self._head = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
        self.offsets = [len(self._head) + first for first in ends[:-1]]
        self.size = len(self._head) + ends[-1]
        self._at = -1  # the piece that `_bytes` are of
        self._bytes: Any = self._head

    def fill(self, room: Array, first: int) -> None:
        """Copy the bytes from `first` on into `room`, as many as it takes."""
        starts, done = [0, *self.offsets], 0
        while done < len(room):
            at = bisect_right(starts, first + done) - 1
            source, begin = self._straight(at - 1), first + done - starts[at]
            n = min(len(room) - done, len(source) - begin)
            target = room[done : done + n]
            if isinstance(source, np.ndarray):
                target[:] = source[begin : begin + n]
            else:
                source[begin : begin + n].get(out=target)
            done += n

    def _straight(self, at: int) -> Any:
        """Return the bytes of a piece in C order: a view where they lie so. -1: of the head."""
        if at != self._at:
            self._at = at
            if at < 0:
                self._bytes = self._head
            else:
                piece = self.pieces[at]
                values = piece.values
                if not values.flags.c_contiguous and not isinstance(values, np.ndarray):
                    values = values.get()  # which gathers on the device what has gaps, such as codes between scales
                straight = values.reshape(-1)[: piece.count]
                self._bytes = (straight if straight.flags.c_contiguous else straight.copy()).view(np.uint8)
        return self._bytes

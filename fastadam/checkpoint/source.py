"""Reads the tensors of an opened checkpoint by stream and path, decoded where they rest in 8 bits."""

from math import prod
from typing import Any

import numpy as np

from fastadam.arrays.host import Array
from fastadam.checkpoint.reading import Opened
from fastadam.kernels import codes
from fastadam.kernels.chores import BLOCK
from fastadam.kernels.codes import GROUP
from fastadam.kernels.formats import CODES


class Source:
    """Reads the tensors of an opened checkpoint, and what of them codes of 8 bits hold.

    streams: their names. coded: (slot, path) -> (name of the codes, where among their elements the path's begin).
    """

    def __init__(self, saved: Opened) -> None:
        self.saved, self.tensors = saved, saved.content["tensors"]
        self.streams = {x["stream"] for x in self.tensors.values() if not self._is_scales(x)}
        self.coded: dict[tuple[str, str], tuple[str, int]] = {}
        for name, tensor in self.tensors.items():
            if "coded" in tensor and not self._is_scales(tensor):
                offset, slot = 0, tensor["stream"]
                for path, shape in zip(tensor["coded"]["paths"], tensor["coded"]["shapes"], strict=True):
                    self.coded[slot, path] = name, offset
                    offset += prod(shape)

    @staticmethod
    def _is_scales(tensor: dict[str, Any]) -> bool:
        return "coded" in tensor and tensor["dtype"] != CODES.rests

    def split(self, name: str) -> tuple[str, str]:
        """Return the stream and the path of a tensor's name. Raises KeyError that lists the names."""
        by_name = {slot + path: (slot, path) for slot, path in self.coded}
        if name in by_name:
            return by_name[name]
        if name not in self.tensors:
            raise KeyError(f"{name} is not in {self.saved.path}, which has {', '.join([*self.tensors, *by_name])}")
        stream = self.tensors[name]["stream"]
        return stream, name[len(stream) :]

    def shape(self, stream: str, path: str) -> tuple[int, ...] | None:
        """Return the shape of a leaf's stream, None where there is none."""
        if (at := self.coded.get((stream, path))) is not None:
            coded = self.tensors[at[0]]["coded"]
            return tuple(coded["shapes"][coded["paths"].index(path)])
        tensor = self.tensors.get(f"{stream}{path}")
        return None if tensor is None else tuple(tensor["shape"])

    def dtype(self, stream: str, path: str) -> str:
        """Return what a stream rests in: the name of a dtype, or 8bit."""
        return CODES.name if (stream, path) in self.coded else self.tensors[f"{stream}{path}"]["dtype"]

    def wide(self, stream: str, path: str, first: int, stop: int) -> Array:
        """Return elements of a leaf's stream in C order, decoded from 8 bits where they rest so."""
        if (stream, path) not in self.coded:
            return self.saved.elements(f"{stream}{path}", first, stop)
        name, offset = self.coded[stream, path]
        coded = self.tensors[name]["coded"]
        shape = tuple(coded["shapes"][coded["paths"].index(path)])
        turned = list(coded["order"]) != sorted(coded["order"])
        low, high = (offset, offset + prod(shape)) if turned else (offset + first, offset + stop)
        values = self._decoded(name, low // GROUP, -(-high // GROUP))[low % GROUP :][: high - low]
        if turned:
            order = coded["order"]
            straight = values.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
            values = straight.reshape(-1)[first:stop]
        return values

    def blocks(self, name: str, first: int, last: int) -> tuple[Array, Array]:
        """Return the codes and the scales of groups first to last, in whole blocks filled up with zeros."""
        count = -(-(last - first) * GROUP // BLOCK)
        numbers, scales = np.zeros((count, BLOCK), np.uint8), np.zeros((count, BLOCK // GROUP), np.float32)
        numbers.reshape(-1)[: (last - first) * GROUP] = self.saved.elements(name, first * GROUP, last * GROUP)
        slot = self.tensors[name]["stream"]
        scales.reshape(-1)[: last - first] = self.saved.elements(f"{slot}_scales{name[len(slot) :]}", first, last)
        return numbers, scales

    def _decoded(self, name: str, first: int, last: int) -> Array:
        halves = self.blocks(name, first, last)
        coded_blocks = np.empty(len(halves[0]) * codes.BYTES, np.uint8)
        for place, values in zip(codes.codes_and_scales(coded_blocks), halves, strict=True):
            place[...] = values
        numbers: Array = codes.decode(coded_blocks, self.tensors[name]["coded"]["signed"], (last - first) * GROUP)
        return numbers

"""Writes and reads manifest.json: what a checkpoint holds and where, with the checks that make its text trustworthy.

One object of JSON with these keys, in this order:
    format, version, byteorder, saved (UTC);
    optimizer: kind, method, t, seed, index_offset, hyperparameters per group, ... as contents.py makes it;
    leaves: by path, count, format, what the rule carries;
    tensors: by name, {"stream", "dtype", "shape", "pieces": [[file, first element, last + 1, byte in the file], ...]},
        and "coded" for codes of 8 bits. Of the name, what follows the stream is the path. Pieces are in the order of
        elements, counted in C order, and leave none out;
    extra: the user's;
    span, algorithm, files: [{"name", "bytes", "checksums": of every span bytes}, ...];
    checksum: crc32 of the text before it, so that the manifest itself cannot be damaged unnoticed.
"""

import json
import math
import re
import sys
import time
import zlib
from collections.abc import Sequence
from math import prod
from typing import Any, NoReturn

from fastadam.checkpoint.checksum import SPAN
from fastadam.checkpoint.tensors import NAMES, Piece, itemsize
from fastadam.kernels.codes import GROUP
from fastadam.kernels.formats import CODES, FLOAT32

NAME = "manifest.json"
FORMAT, VERSION = "fastadam checkpoint", 1
LARGEST = 1 << 26  # bytes of a manifest that is read: 100,000 tensors take half of it
FILE = re.compile(r"(?:\d{8,20}-[0-9a-f]{16}/)?rank-\d{5,9}\.safetensors")
END = b', "checksum": "'
MOST = 1 << 62
DEEPEST = 100  # levels of what the user adds
LONGEST = 1 << 13  # bits of its integers: Python reads no more than 4,300 digits


class Damaged(ValueError):
    """Is raised for a checkpoint that is not as it was written.

    >>> try:
    ...     fa.checkpoint.load("model.ckpt", fa.Adam(np.ones(3)))
    ... except (OSError, fa.checkpoint.Damaged) as error:
    ...     print("start anew")
    start anew
    """


def check_json(where: str, x: Any, depth: int = 0) -> None:
    """Refuse, naming it, what JSON would not give back as it is, or only where enough of the stack is left."""
    if depth > DEEPEST:
        raise ValueError(f"{where[:80]}... is nested deeper than {DEEPEST}, expected less, and nothing within itself")
    if isinstance(x, dict):
        for key, value in x.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}, expected text: JSON has no other keys")
            check_json(f"{where}[{key!r}]", value, depth + 1)
    elif isinstance(x, list):
        for k, value in enumerate(x):
            check_json(f"{where}[{k}]", value, depth + 1)
    elif x is not None and type(x) not in (str, int, float, bool):
        raise TypeError(f"{where} is {type(x).__name__}, expected JSON: dict, list, str, int, float, bool or None")
    elif isinstance(x, float) and not math.isfinite(x):
        raise ValueError(f"{where} is {x}, expected a finite number: JSON has no others")
    elif isinstance(x, int) and x.bit_length() > LONGEST:
        raise ValueError(f"{where} is an integer of {x.bit_length():,} bits, expected at most {LONGEST:,}: as a text")


def encode(
    optimizer: dict[str, Any], leaves: dict[str, Any], tensors: dict[str, Any], extra: Any, algorithm: str,
    files: Sequence[dict[str, Any]],
) -> bytes:  # fmt: skip
    """Return the text of a manifest."""
    content = {
        "format": FORMAT, "version": VERSION, "byteorder": sys.byteorder,
        "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "optimizer": optimizer, "leaves": leaves,
        "tensors": tensors, "extra": extra, "span": SPAN, "algorithm": algorithm, "files": list(files),
    }  # fmt: skip
    text = json.dumps(content).encode()[:-1]
    if len(text) + 64 > LARGEST:
        raise ValueError(f"the manifest takes {len(text):,} bytes, expected at most {LARGEST:,}: less in extra")
    return text + END + f'{zlib.crc32(text):08x}"}}\n'.encode()


def located(pieces: Sequence[tuple[int, Piece, int]]) -> dict[str, Any]:
    """Return the manifest's tensors, from each piece with the file it is in and its first byte there.

    What several files have is taken from the first of them. Raises ValueError where elements are missing.
    """
    by_name: dict[str, list[tuple[int, Piece, int]]] = {}
    for item in pieces:
        by_name.setdefault(item[1].name, []).append(item)
    tensors: dict[str, Any] = {}
    for name, parts in by_name.items():
        first = parts[0][1]
        entry: dict[str, Any] = {"stream": first.stream, "dtype": first.dtype, "shape": list(first.shape)}
        if first.coded is not None:
            entry["coded"] = first.coded
        spots: list[list[int]] = []
        end = 0
        for file, piece, offset in sorted(parts, key=lambda part: (part[1].start, -part[1].count, part[0])):
            if (piece.dtype, piece.shape, piece.coded) != (first.dtype, first.shape, first.coded):
                raise ValueError(
                    f"{name} is {piece.dtype}{piece.shape} in one rank and {first.dtype}{first.shape} in another"
                )
            stop = piece.start + piece.count
            if stop > end or (not spots and stop == 0):
                if piece.start != end:
                    break
                spots.append([file, piece.start, stop, offset])
                end = stop
        if end != prod(first.shape) or not spots:
            raise ValueError(
                f"the ranks have no piece of {name} that begins with its element {end}, expected all of "
                f"{prod(first.shape)}, cut alike for all"
            )
        tensors[name] = {**entry, "pieces": spots}
    return tensors


def decode(data: bytes) -> dict[str, Any]:
    """Return the content of a manifest's text, checked.

    Raises Damaged where it cannot have been written like this, ValueError where another version wrote it.
    """
    text, end, rest = data.rpartition(END)
    if not end or rest != f'{zlib.crc32(text):08x}"}}\n'.encode():
        raise Damaged(f"{NAME} is damaged: its checksum differs")
    try:
        content = json.loads(text + b"}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{NAME} is damaged: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Damaged(f"{NAME} is not one of fastadam's")
    for key, expected in (("version", VERSION), ("byteorder", sys.byteorder)):
        if content.get(key) != expected:
            raise ValueError(f"the checkpoint's {key} is {content.get(key)!r}, expected {expected!r}")
    try:
        _check(content)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise Damaged(f"{NAME} is damaged: {type(error).__name__}: {error}") from None
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _integer(x: Any, most: int) -> int:
    if type(x) is not int or not 0 <= x <= most:
        raise ValueError(f"{str(x)[:40]} where an integer from 0 to {most} is expected")
    return x


def _check(content: dict[str, Any]) -> None:
    for key, kind in {"optimizer": dict, "leaves": dict, "tensors": dict, "files": list, "algorithm": str}.items():
        if not isinstance(content[key], kind):
            raise TypeError(f"{key} is {type(content[key]).__name__}, expected {kind.__name__}")
    if not all(isinstance(leaf, dict) for leaf in content["leaves"].values()):
        raise TypeError("leaves hold something else than dicts")
    span = _integer(content["span"], 1 << 40) or 1
    names = set()
    for file in content["files"]:
        if not isinstance(file["name"], str) or not FILE.fullmatch(file["name"]) or file["name"] in names:
            raise ValueError(f"a file is called {str(file['name'])[:80]!r}")
        names.add(file["name"])
        if len(file["checksums"]) != -(-_integer(file["bytes"], MOST) // span):
            raise ValueError(f"{file['name']} has {len(file['checksums'])} checksums for {file['bytes']} bytes")
        for each in file["checksums"]:
            _integer(each, 0xFFFFFFFF)
    for name, tensor in content["tensors"].items():
        _check_tensor(name, tensor, content["files"])


def _check_tensor(name: str, tensor: dict[str, Any], files: list[dict[str, Any]]) -> None:
    if tensor["dtype"] not in NAMES or not isinstance(tensor["shape"], list) or len(tensor["shape"]) > 64:
        raise ValueError(f"{name[:80]} is {str(tensor['dtype'])[:40]}{str(tensor['shape'])[:80]}")
    n, width, end = 1, itemsize(tensor["dtype"]), 0
    for size in tensor["shape"]:
        n = _integer(n * _integer(size, MOST), MOST)
    if not tensor["pieces"]:
        raise ValueError(f"{name[:80]} has no pieces")
    for file, start, stop, offset in tensor["pieces"]:
        if _integer(start, MOST) != end or _integer(stop, n) < start:
            raise ValueError(f"{name[:80]} has a piece of elements {start} to {stop} behind element {end}")
        container = files[_integer(file, len(files) - 1)]
        if _integer(offset, MOST) + (stop - start) * width > container["bytes"]:
            raise ValueError(f"{name[:80]} has a piece beyond the end of {container['name']}")
        end = stop
    if end != n:
        raise ValueError(f"{name[:80]} has {end} elements of {n}")
    if not isinstance(tensor["stream"], str) or not name.startswith(tensor["stream"]):
        raise ValueError(f"{name[:80]} is of the stream {str(tensor['stream'])[:80]}")
    if "coded" in tensor:
        _check_coded(name, tensor["coded"], tensor["shape"][0] * GROUP, tensor["dtype"])


def _check_coded(name: str, coded: dict[str, Any], room: int, dtype: str) -> None:
    sizes = [[_integer(size, MOST) for size in shape] for shape in coded["shapes"]]
    total = sum(map(prod, sizes))
    if not 0 <= room - total < GROUP or dtype not in (CODES.rests, FLOAT32.rests) or type(coded["signed"]) is not bool:
        raise ValueError(f"{name[:80]} has {dtype} codes of {room} elements for {total}")
    if len(coded["paths"]) != len(sizes) or not all(isinstance(path, str) for path in coded["paths"]):
        raise ValueError(f"{name[:80]} has codes of {len(coded['paths'])} paths with {len(sizes)} shapes")
    if sorted(coded["order"]) != list(range(len(sizes[0]) if len(sizes) == 1 else 1)):
        raise ValueError(f"{name[:80]} has codes in the order {str(coded['order'])[:80]}")

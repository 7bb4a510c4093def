"""Makes a task of passages of Python's own standard library: is this code, a docstring or a comment? And bags of words
of them.

The texts are there wherever Python is, and whole modules are held out, so nothing that is tested was trained on.
"""

import functools
import io
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastadam.tools.demo.models import cross_entropy

Array = NDArray[Any]

KINDS = "code", "docstring", "comment"
PASSAGE = 20  # words
_WORD = re.compile(r"[^\W\d]\w*")
_STATEMENT = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}  # what comes before one


class Passage(NamedTuple):
    file: int
    kind: int
    words: list[str]


def words_by_kind(source: str) -> tuple[list[str], list[str], list[str]]:
    """Return the words of code, of docstrings (any text that is a statement) and of comments, in the order of KINDS."""
    words: tuple[list[str], list[str], list[str]] = [], [], []
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            words[0].append(token.string.lower())
        elif token.type == tokenize.STRING and before in _STATEMENT:
            words[1].extend(_WORD.findall(token.string.lower()))
        elif token.type == tokenize.COMMENT:
            words[2].extend(_WORD.findall(token.string.lower()))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    return words


@functools.cache
def passages() -> list[Passage]:
    """Return every run of PASSAGE words of one kind in the modules of the standard library and of its packages.

    Left out: the tests, some of which are no Python, and the encodings, whose comments are tables of characters.
    """
    root = Path(sysconfig.get_path("stdlib"))
    packages = [path.parent for path in root.glob("*/__init__.py") if path.parent.name not in ("test", "encodings")]
    collected = []
    for file, path in enumerate(sorted(path for folder in (root, *packages) for path in folder.glob("*.py"))):
        with tokenize.open(path) as opened:
            kinds = words_by_kind(opened.read())
        for kind, words in enumerate(kinds):
            ends = range(PASSAGE, len(words) + 1, PASSAGE)
            collected += [Passage(file, kind, words[end - PASSAGE : end]) for end in ends]
    return collected


def features(words: list[str]) -> Iterator[str]:
    """Yield each word, and each two and three that follow one another."""
    yield from words
    yield from map(" ".join, pairwise(words))
    yield from map(" ".join, zip(words, words[1:], words[2:], strict=False))


class Bags:
    """Holds passages as rows of an embedding: one array of rows each, repeated words repeated."""

    def __init__(self, rows: list[Array]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: Array) -> list[Array]:
        return [self._rows[i] for i in which]


@functools.lru_cache(maxsize=1)
def bags_without(held: frozenset[int]) -> tuple[Bags, int, Array]:
    """Return every passage's rows; how many rows there are, one for each feature of those to learn from; which are held
    out.

    held: the files that are held out. Row 0 is for all features that only they have; it never gets a gradient.
    """
    documents, vocabulary = passages(), dict[str, int]()
    for passage in documents:
        if passage.file not in held:
            for feature in features(passage.words):
                vocabulary.setdefault(feature, len(vocabulary) + 1)
    rows = [np.array([vocabulary.get(feature, 0) for feature in features(passage.words)]) for passage in documents]
    return Bags(rows), len(vocabulary) + 1, np.array([passage.file in held for passage in documents])


def loss_and_grads(params: Any, bags: list[Array], y: Array) -> tuple[float, Any, int]:
    """Return loss, gradient and hits of logistic regression on the sum of a passage's rows over the root of their
    number.

    grads["embedding"] is (indices, values), what Optimizer.step_rows takes: a row's gradients are to be summed.
    """
    indices, lengths = np.concatenate(bags), np.array([len(bag) for bag in bags])
    scale = (1 / np.sqrt(lengths)).astype(np.float32)[:, None]
    sums = np.add.reduceat(params["embedding"][indices], np.cumsum(lengths) - lengths)
    loss, delta, hits = cross_entropy(sums * scale + params["bias"], y)
    values = np.repeat(delta * scale, lengths, axis=0)
    return loss, {"embedding": (indices, values), "bias": delta.sum(axis=0)}, hits


def densely(grads: Any, rows: int) -> Any:
    """Return the same gradient as one array, most of it 0."""
    indices, values = grads["embedding"]
    dense = np.zeros((rows, values.shape[1]), values.dtype)
    np.add.at(dense, indices, values)
    return {**grads, "embedding": dense}

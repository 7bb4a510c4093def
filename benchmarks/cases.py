"""Says what is stepped: cases, which are lists of shapes and the chores of a step, and settings of a method.

A case's name is a workload's, with the chores after it: 2^20, resnet50, "2^24 max_norm", "2^24 whole".
"""

from dataclasses import dataclass, fields, replace
from functools import cache
from math import prod

import numpy as np


def mlp():
    """Return the shapes of three dense layers, the last a classifier of ten."""
    return [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]


def resnet50():
    """Return torchvision's shapes: a stem, four stages of bottlenecks (1x1, 3x3, 1x1), a classifier."""

    def conv(out, into, k):
        return [(out, into, k, k), (out,), (out,)]  # no bias; then the norm's scale and shift

    shapes, into = conv(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += conv(width, into, 1) + conv(width, width, 3) + conv(4 * width, width, 1)
            if block == 0:
                shapes += conv(4 * width, into, 1)  # the shortcut that changes the width
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


def block(h):
    """Return the shapes of a transformer's block: attention in and out, the MLP up and down, two norms."""
    return [(3 * h, h), (3 * h,), (h, h), (h,), (4 * h, h), (4 * h,), (h, 4 * h), (h,), (h,), (h,), (h,), (h,)]


def vit_b():
    """Return the shapes of the 12 blocks of ViT-B."""
    return 12 * block(768)


def gpt2(h, layers):
    """Return the shapes of tokens, positions, blocks, the last norm; the head is the tokens' matrix."""
    return [(50257, h), (1024, h), *(layers * block(h)), (h,), (h,)]


def bert_large():
    """Return the shapes of embeddings with their norm, 24 layers with query, key and value apart, the pooler."""
    h = 1024
    layer = 4 * [(h, h), (h,)] + [(h,), (h,), (4 * h, h), (4 * h,), (h, 4 * h), (h,), (h,), (h,)]
    return [(30522, h), (512, h), (2, h), (h,), (h,), *(24 * layer), (h, h), (h,)]


def llama2_7b():
    """Return the shapes of an embedding, 32 layers without biases, the last norm, the head."""
    h, wide = 4096, 11008
    layer = 4 * [(h, h)] + [(wide, h), (wide, h), (h, wide), (h,), (h,)]
    return [(32000, h), *(32 * layer), (h,), (32000, h)]


MODELS = {
    "mlp": mlp(),
    "resnet50": resnet50(),
    "160-leaves": 160 * [(1000,)],
    "vit-b": vit_b(),
    "gpt2": gpt2(768, 12),
    "gpt2-layer": [shape for shape in block(768) if len(shape) == 2],  # the matrices of one
    "200-matrices": 200 * [(64, 64)],
    "bert-large": bert_large(),
    "gpt2-xl": gpt2(1600, 48),
    "llama2-7b": llama2_7b(),
}
SIZES = (2**10, 2**14, 2**17, 2**20, 2**24, 2**26)  # from a call's own cost to memory alone


def size(shapes):
    """Count the parameters."""
    return sum(map(prod, shapes))


def flat(n):
    """Name the case of one array of n elements: 2^20, or the number."""
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 else str(n)


def shapes(case):
    """Return the shapes of a case's workload, a model's or a flat size's."""
    workload = case.partition(" ")[0]
    if workload in MODELS:
        return MODELS[workload]
    base, _, power = workload.partition("^")
    return [(int(base) ** int(power or 1),)]


# What a step does beside the rule, by name: nothing; clip by the global norm; unscale, clip, average, copy to bfloat16,
# zero g.
CHORES = "", "max_norm", "whole"
SCALE, MAX_NORM, EMA_DECAY = 1 / 1024, 1.0, 0.999


def chores(case):
    """Return the name of a case's chores."""
    return case.partition(" ")[2]


@dataclass(frozen=True)
class Precision:
    """Says what a step's numbers rest in, by its name: the dtype of p and g, then what else the method is told.

    float32; float32:moments=8bit; bfloat16:moments=bfloat16:master=remainder.
    """

    name: str

    @property
    def dtype(self):
        if self.name.startswith("bfloat16"):
            import ml_dtypes  # noqa: F401  # NumPy knows the name from then on

        return np.dtype(self.name.partition(":")[0])

    @property
    def options(self):
        return dict(word.split("=") for word in self.name.split(":")[1:])

    @property
    def moments(self):
        """Return the name of what the slots rest in."""
        from fastadam.kernels.formats import compute

        return self.options.get("moments", compute(self.dtype).name)


NARROW = (
    "bfloat16", "float16", "bfloat16:master=remainder",
    "float32:moments=bfloat16", "bfloat16:moments=bfloat16:master=remainder",
    "float32:moments=8bit", "bfloat16:moments=bfloat16", "bfloat16:moments=8bit",
)  # fmt: skip


@cache
def formats():
    """Return {name: Precision} of those that this version of the library steps, tried out one by one; dtypes first."""
    import fastadam
    from fastadam.kernels.formats import DTYPES

    by_name = {dtype.name: Precision(dtype.name) for dtype in DTYPES}
    for one in map(Precision, NARROW):
        try:
            fastadam.Adam(np.zeros(64, one.dtype), backend="numpy", **one.options)
        except (TypeError, ValueError, ImportError):  # no such dtype, no such argument, no such value, no ml_dtypes
            continue
        by_name[one.name] = one
    return by_name


@dataclass(frozen=True)
class Setting:
    """Describes a method with its options, and otherwise its defaults, which are torch's."""

    name: str  # Adam, AdamW-amsgrad, SGD-momentum, ...
    method: type
    options: dict
    format: Precision = Precision("float32")
    chores: str = ""  # one of CHORES

    @property
    def dtype(self):
        return self.format.dtype

    @property
    def rule(self):
        return self.method.rule(**self.options)

    @property
    def hyperparameters(self):
        """Return all hyperparameters by name."""
        return {each.name: getattr(self.rule, each.name) for each in fields(self.rule) if each.init}

    @property
    def kernel(self):
        """Return the method's kernel; None where it is made of several optimizers."""
        from fastadam import kernels

        return kernels.ALL.get(getattr(self.rule, "kernel", None))

    @property
    def slots(self):
        """Return how many arrays of state each parameter has."""
        return sum(map(self.rule.keeps, self.kernel.slots)) if self.kernel else len(self.rule.averages)

    def optimizer(self, params, copies=None, **more):
        """Return the method over these arrays, with what the chores ask for. copies: bfloat16 arrays beside them."""
        asked = {"max_norm": MAX_NORM} if self.chores else {}
        if self.chores == "whole":
            asked |= {"ema_decay": EMA_DECAY, "copy_to": copies, "zero_grads": True}
        return self.method(params, **self.options, **self.format.options, **asked, **more)

    @property
    def bytes(self):
        """Return what a step moves per parameter, chores included, as the optimizer counts it over one matrix."""
        from fastadam.kernels.formats import FORMATS

        p = np.ones((64, 64), self.dtype)
        copies = [np.zeros(p.shape, FORMATS["bfloat16"].dtype)] if self.chores == "whole" else None
        return self.optimizer([p], copies, backend="numpy").bytes_per_step / p.size

    @property
    def by_leaf(self):
        """Say whether what becomes of an element depends on all of its leaf."""
        return self.kernel is None or self.sums_first

    @property
    def sums_first(self):
        """Say whether steps begin with sums over whole leaves, in a walk of the kernel's own."""
        return self.kernel is not None and self.kernel.summed(self.rule.options)


def setting(rule, format="float32", chores=""):
    """Return the setting of that name in the format of that name, with the chores of that name."""
    return replace(settings()[rule], format=formats()[format], chores=chores)


@cache
def settings():
    """Return every method with each of its options alone, and with every pair of them in some choice, by name."""
    import fastadam
    from fastadam.tools.cover import METHODS, label, variants

    public = [each for each in vars(fastadam).values() if isinstance(each, type) and "rule" in vars(each)]
    by_name, alone = {}, [(each, {}) for each in public if each not in METHODS]
    for method in METHODS:
        options = [each.name for each in fields(method.rule) if each.init and each.default is False]
        for chosen in [{}, *({name: True} for name in options if name != "maximize")]:
            try:
                method.rule(**chosen)
            except ValueError:  # Nesterov without momentum
                continue
            alone.append((method, chosen))
        if getattr(method.rule(), "momentum", None) == 0:
            alone.append((method, {"momentum": 0.9}))
    for variant in [*variants(maximize=False), *alone]:
        method, chosen = variant
        usual = {each.name: each.default for each in fields(method.rule)}
        options = {key: on for key, on in chosen.items() if isinstance(on, bool) and on is not usual[key]}
        if chosen.get("momentum"):
            options["momentum"] = 0.9
        by_name[label(variant)] = Setting(label(variant), method, options)
    return by_name

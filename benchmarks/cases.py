"""The workloads: lists of shapes. Flat sizes show the kernel, the models show what many small tensors cost."""

from math import prod


def mlp():
    """Three dense layers, the last a classifier of ten."""
    return [(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)]


def resnet50():
    """torchvision's list: a stem, four stages of bottlenecks (1x1, 3x3, 1x1), a classifier."""

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


def vit_b():
    """The 12 blocks of ViT-B: attention in and out, the MLP up and down, two norms."""
    h = 768
    return 12 * [(3 * h, h), (3 * h,), (h, h), (h,), (4 * h, h), (4 * h,), (h, 4 * h), (h,), (h,), (h,), (h,), (h,)]


def size(shapes):
    """How many parameters."""
    return sum(map(prod, shapes))


FLAT = {f"2^{k}": [(2**k,)] for k in (10, 14, 17, 20, 24, 26)}
MODELS = {"mlp": mlp(), "resnet50": resnet50(), "vit-b": vit_b()}
CORE = FLAT | MODELS

for _name, _tensors, _n in (("mlp", 6, 8_970), ("resnet50", 161, 25_557_032), ("vit-b", 144, 85_054_464)):
    assert (len(MODELS[_name]), size(MODELS[_name])) == (_tensors, _n), _name

"""Small kernels over x and y, as their checks run them."""

import numpy as np

I = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"  # noqa: E741
ADD = (I + "x[i] = y[i] + 1;", "int* x, const int* y")  # plain arithmetic of floats is flushed


def function(device, body, parameters="float* x, const float* y, long long n", before=""):
    """Return a kernel of this body."""
    text = f'{before}\nextern "C" __global__ void f({parameters}) {{ {body} }}\n'
    return device.RawModule(text).get_function("f")


def launch(device, body, x, y=None, n=0, grid=1, threads=64, **text):
    """Run a kernel over x, y and n, and wait for it."""
    function(device, body, **text)((grid,), (threads,), (x, x if y is None else y, np.array(n, np.int64)))
    device.state.stream.synchronize()


def two(device):
    """Return two arrays of zeros, and the kernel that writes to one what it reads of the other and 1."""
    return device.zeros(64, np.int32), device.zeros(64, np.int32), function(device, *ADD)

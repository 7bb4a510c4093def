"""The compute, one folder a kernel. ALL holds the kernels by name: tests and benchmarks iterate over it."""

from fastadam.kernels import adabelief, adagrad, adam, adamax, lion, momentum, nadam, rmsprop
from fastadam.kernels.contract import Kernel

ALL = {
    kernel.name: kernel for kernel in map(Kernel.of, (adam, nadam, adamax, adabelief, lion, momentum, rmsprop, adagrad))
}

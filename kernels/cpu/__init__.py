"""Walks over the CPU's memory in code that Numba compiles: formats, chores, the norm, and the cache of all that.

May import Numba and the texts beside it in kernels/; importing the package itself loads no Numba, its modules do.
Threads' limits and the addresses of users' arrays belong to fastadam/host.
"""

"""The compiled walk of the CPU: Numba's texts of formats, chores and the norm, and how they are compiled and cached.

May import Numba and the texts beside it in kernels/; importing the package itself loads no Numba, its modules do.
Threads' limits and the addresses of users' arrays belong to fastadam/host.
"""

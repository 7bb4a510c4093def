"""Steps arrays on CPUs: the NumPy reference, the compiled walk by addresses, the judge of measured gradients, threads.

May import plans, arrays and kernels, not cuda. Element arithmetic belongs to kernels/.
"""

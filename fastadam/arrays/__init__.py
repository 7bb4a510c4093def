"""Says where parameters and gradients lie: in arrays of the host and of CUDA devices, trees of them, flat buffers.

May import NumPy, kernels and fastadam.checks, and CuPy when an array is on a device.
Steps, and what is kept between them, belong to the wings above.
"""

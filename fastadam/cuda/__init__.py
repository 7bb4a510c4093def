"""Steps arrays on NVIDIA GPUs through CuPy: launches, norms, uploads, windows of steps to come, compilation by NVRTC.

May import plans, arrays and kernels, not host; importing it loads no CuPy. CUDA text belongs to kernels/cuda.
"""

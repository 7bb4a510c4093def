"""An interpreter for PTX, which NVRTC makes of the very CUDA that CuPy is given: a device's code without a device.

    reading.py       what a kernel's text says: parameters, shared memory, registers, basic blocks of statements
    instructions.py  which there are, by their whole names, and what each means for NumPy's arrays
    blocks.py        each basic block as a Python function over NumPy arrays with one element a thread
    launch.py        the threads of one grid, from block to block of the text, and what a barrier asks of them
    memory.py        a device's arrays: which bytes may be touched, which have been written, by whose work
    races.py         who has loaded and stored each place since threads last met
    streams.py       which work on streams comes after which: the order that CUDA promises
    interpreter.py   what runs kernels for the stand-in for CuPy, from its text to PTX, which is kept on disk

Whatever the device leaves undefined is a Fault here. What a kernel's text holds and this folder does not know is an
error when the text is read, and so is anything fused, flushed or approximate. Nothing here has seen a GPU: reports say
"PTX executed by interpreter", never more.
"""

"""Says what a step is before a processor is chosen: streams, rows of coefficients, gradients, chores, storage.

May import arrays, kernels, rules, group and checks. What runs on one processor alone belongs to host or cuda.
"""

"""Holds what an optimizer keeps from one step to the next: slots, averages, masters, totals, rows left behind.

May import plans and arrays. How a step is launched belongs to host and cuda.
"""

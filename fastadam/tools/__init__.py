"""Has what a person runs: the command line, info, advise, verify, warmup, demo, and what tests share with them.

May import everything below it. What a step needs belongs to the wings below, none of which imports it.
"""

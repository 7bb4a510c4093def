"""What a person runs: the command line, info, verify, warmup, demo, and what tests share with them.

May import everything below it. Nothing of the library may import it, but for fastadam.info.
"""

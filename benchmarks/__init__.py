"""The measurement: one program for `bench` and all its suites, pytest-benchmark, compare.py and the tables.

It may import everything of fastadam's; nothing of fastadam's imports it but the command `bench`.
cases, suites, targets: what is stepped, by whom, and what is asked. ours, ours_cuda, limits, peers: who steps it.
truth: the float64 oracle before the clock starts. clock: interleaved rounds. worker: one process of them.
bench: the processes and the result. summary, markdown, report: what it says. measure, compare: what to run for that.
"""

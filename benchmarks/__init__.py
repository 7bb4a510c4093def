"""Measures: one program for `bench` and its suites, pytest-benchmark, compare.py and the tables.

May import all of fastadam, which imports it for `bench` alone. Figures typed by hand never belong here. Who does what:
cases, suites, targets say what is stepped, by whom, and what is asked; ours, ours_cuda, limits, peers step; truth is
the float64 oracle before the clock starts, clock interleaves rounds, worker is one process of them; bench runs these,
summary, markdown and report say what came out, measure and compare know what to run.
"""

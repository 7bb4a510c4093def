"""The measurement: one set of cases, contestants, clock and limit for `bench`, pytest-benchmark and README's tables.

cases:    what is stepped: lists of shapes, and every method with its options.
ours, peers: who steps it; limit: the time that moving the bytes takes.
truth:    the float64 oracle that everyone is held against before the clock starts.
clock:    interleaved rounds. worker: one process of them. bench: the processes, the table, the file.
"""

"""Tells pytest how benchmarks are run."""

import warnings


def pytest_xdist_auto_num_workers(config):
    """What is timed runs alone."""
    return 0


def pytest_configure(config):
    """Another machine's results, or none, to compare with are worth a word of pytest-benchmark's, not an error."""
    if config.pluginmanager.hasplugin("benchmark"):
        from pytest_benchmark.logger import PytestBenchmarkWarning

        warnings.filterwarnings("default", category=PytestBenchmarkWarning)  # around the session, then within it
        config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")

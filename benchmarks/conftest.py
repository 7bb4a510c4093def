"""Tells pytest how benchmarks are run."""

import warnings


def pytest_xdist_auto_num_workers(config):
    """Let what is timed run alone, in one process."""
    return 0


def pytest_configure(config):
    """Let pytest-benchmark say, and not raise, that the results to compare with are another machine's, or none."""
    if config.pluginmanager.hasplugin("benchmark"):
        from pytest_benchmark.logger import PytestBenchmarkWarning

        warnings.filterwarnings("default", category=PytestBenchmarkWarning)  # around the session, then within it
        config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")

"""What benchmarks tell pytest."""


def pytest_configure(config):
    """Another machine's results, or none, to compare with are worth a word of pytest-benchmark's, not an error."""
    if config.pluginmanager.hasplugin("benchmark"):
        config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")

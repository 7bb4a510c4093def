"""Keras on the backend that $KERAS_BACKEND names, PyTorch unless said, imported before warnings are errors."""

import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras

    import fastadam.keras  # noqa: F401


def pytest_report_header():
    return f"keras {keras.__version__} on {keras.config.backend()}"

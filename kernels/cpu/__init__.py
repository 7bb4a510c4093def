"""The Numba backend's compute. Importing this package loads no numba; its modules do."""

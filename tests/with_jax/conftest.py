"""JAX with two devices on the host, as the tests of sharding need them; set before JAX is first imported."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

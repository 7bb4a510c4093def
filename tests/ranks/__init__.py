"""Several processes hold the bits of one: what runs when it is named. See tests/README.md."""

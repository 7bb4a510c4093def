"""Says which version of the library this is, for everyone below the package itself."""

VERSION = "0.1.0"

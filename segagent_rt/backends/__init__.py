"""Runtime libraries, each behind a `Session`."""

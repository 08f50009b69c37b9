"""The process that runs: what is put together, started, kept alive and stopped."""

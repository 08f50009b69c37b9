"""The end-to-end parts: the project in a Debian of its own, as a user installs it, and at real brokers."""

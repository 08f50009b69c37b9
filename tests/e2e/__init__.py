"""The end-to-end parts: the project in its own Debian, as a user installs it, and with real brokers."""

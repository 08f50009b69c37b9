"""The commands that try everything once, and that clean up; each beside a daemon that may be running."""

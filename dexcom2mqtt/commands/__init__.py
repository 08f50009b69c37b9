"""The commands that try everything once and that clean up; each may run beside a daemon."""

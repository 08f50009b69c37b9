"""The whole system with no account and no broker: simulated Share service, embedded broker, live view."""

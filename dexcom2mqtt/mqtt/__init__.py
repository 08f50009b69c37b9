"""The way out: the connection to the MQTT broker, which the daemon keeps for ever, and a command for a moment.

Nothing here knows of glucose. ``link`` keeps the broker equal to what it should hold, and ``visit`` is a command's
stay; both use a ``connection``, and ``dialling`` says why there is none. ``tls_files`` has what encryption needs.
"""

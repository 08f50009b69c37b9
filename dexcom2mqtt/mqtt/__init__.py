"""The connection to the MQTT broker: the daemon's permanent one, and a command's short one.

Nothing here knows about glucose. ``link`` keeps the broker in sync for the daemon, and ``visit`` is a command's short
connection. Both use ``connection``; ``dialling`` explains why one failed, and ``tls_files`` loads the TLS files.
"""

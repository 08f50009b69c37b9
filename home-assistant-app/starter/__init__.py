"""What starts the daemon in Home Assistant's app: from the form and the Supervisor's word on the broker.

It runs as root, since nobody else may read what was filled in, and the daemon as a user without rights. It knows
nothing of glucose, Share or MQTT, and takes no library.
"""

"""The starter of the daemon in Home Assistant's app. It uses the form, and asks the Supervisor for the broker.

It runs as root, because only root may read the filled-in form; the daemon runs as a user without rights. It knows
nothing about glucose, Share or MQTT, and uses no library.
"""

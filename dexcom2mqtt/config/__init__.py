"""The configuration: from YAML, secret files and the environment into typed, frozen settings.

Must not know what a setting is used for: nothing in here connects, signs in or waits. ``loading`` makes ``settings``.
"""

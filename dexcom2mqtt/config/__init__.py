"""The configuration: from YAML, secret files and the environment into typed, frozen settings.

Must not know what a setting is used for: it does not connect, sign in or wait. ``loading`` makes ``settings``.
"""

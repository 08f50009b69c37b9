"""dexcom2mqtt publishes continuous glucose readings from Dexcom Share to MQTT."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """Return the version of dexcom2mqtt."""
    import importlib.metadata  # noqa: PLC0415  # loading it takes as long as everything else for --version

    return importlib.metadata.version("dexcom2mqtt")

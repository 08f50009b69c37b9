"""dexcom2mqtt brings continuous glucose readings from Dexcom Share to MQTT."""

from __future__ import annotations

import functools


@functools.cache
def version() -> str:
    """Return the version of dexcom2mqtt."""
    import importlib.metadata  # noqa: PLC0415  # it takes as long to load as all of the rest that --version needs

    return importlib.metadata.version("dexcom2mqtt")

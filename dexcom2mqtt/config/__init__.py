"""The configuration: from YAML, secret files and the environment into typed, frozen settings.

Must not know what a setting is used for: nothing in here connects, signs in or waits.
"""

from dexcom2mqtt.config.loading import build, client_id, load
from dexcom2mqtt.config.mistakes import ConfigError
from dexcom2mqtt.config.settings import Account, HomeAssistant, Mqtt, Ranges, Settings, Tls
from dexcom2mqtt.config.values import LogLevel, Protocol, Region, Secret, Unit

__all__ = [
    "Account",
    "ConfigError",
    "HomeAssistant",
    "LogLevel",
    "Mqtt",
    "Protocol",
    "Ranges",
    "Region",
    "Secret",
    "Settings",
    "Tls",
    "Unit",
    "build",
    "client_id",
    "load",
]

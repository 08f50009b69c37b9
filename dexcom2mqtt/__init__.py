"""dexcom2mqtt brings continuous glucose readings from Dexcom Share to MQTT."""

"""What many people run: pydexcom's newest reading, to an MQTT topic every five minutes, to compare the daemon with.

The environment has the service's ``BASE_URL``, the broker's ``PORT``, ``SPEED`` (how many times too fast time runs),
``USERNAME`` and ``PASSWORD``. In a real script these would be constants.
"""

from __future__ import annotations

import logging
import os
import socket
import time

import pydexcom
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from pydexcom import const

const.DEXCOM_BASE_URLS[const.Region.US] = f"{os.environ['BASE_URL']}/"

dexcom = pydexcom.Dexcom(username=os.environ["USERNAME"], password=os.environ["PASSWORD"])
client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", int(os.environ["PORT"]))
client.loop_start()

ready = False
while True:
    try:
        reading = dexcom.get_current_glucose_reading()
    except Exception:
        logging.getLogger("plain").exception("Share failed")
    else:
        if reading is not None:
            client.publish("plain/value", reading.value, qos=1, retain=True).wait_for_publish(10)
        if not ready:  # for the bench: everything runs, and the first value is published
            ready = True
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(300 / float(os.environ["SPEED"]))

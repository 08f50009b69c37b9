"""What many people run: pydexcom's newest reading to an MQTT topic every five minutes. It is compared with the daemon.

From the environment come the service's ``BASE_URL``, the broker's ``PORT``, and ``SPEED``, how many times too fast time
runs; a script of one's own would have these, the user name and the password in its text.
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

told = False
while True:
    try:
        reading = dexcom.get_current_glucose_reading()
    except Exception:
        logging.getLogger("plain").exception("Share failed")
    else:
        if reading is not None:
            client.publish("plain/value", reading.value, qos=1, retain=True).wait_for_publish(10)
        if not told:  # for the bench: the rest is up, and the first value is out
            told = True
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(300 / float(os.environ["SPEED"]))

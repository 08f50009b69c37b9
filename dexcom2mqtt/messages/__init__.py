"""What the broker should hold: every payload, the picture of all retained ones, and the stream of readings."""

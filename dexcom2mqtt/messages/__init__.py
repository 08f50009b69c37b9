"""What the broker should hold: every payload, the picture of all retained messages, and the stream of readings."""

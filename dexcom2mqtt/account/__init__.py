"""One account: poll Share, keep new readings, hand them to the broker's side, report the status."""

"""What can be seen in a browser, and what Nightscout's clients read: over HTTP, read-only. It decides nothing."""

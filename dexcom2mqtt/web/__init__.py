"""The page for browsers and the API for Nightscout clients: over HTTP, read-only. Nothing is decided here."""

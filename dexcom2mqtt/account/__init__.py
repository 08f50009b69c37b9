"""One person, for ever: ask Share, keep what is new, hand it over, say how it is going."""

"""What must not be seen: masked credentials, what logs may quote, private files, escaped text."""

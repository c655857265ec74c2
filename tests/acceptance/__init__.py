"""What a user can do, each sentence of it, through the public API, with real workers started by the real commands."""

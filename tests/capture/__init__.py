"""Usage capture against a server that counts by itself."""

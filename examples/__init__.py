"""A research agent, the servers it talks to, and the demo that kills its worker."""

"""A research agent, the servers it uses, and the demo that kills its worker."""

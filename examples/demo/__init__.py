"""The demo: a research agent's worker is killed with SIGKILL, another goes on, and the bill is compared."""

"""The demo: a research agent's worker is killed with SIGKILL, another one continues, and the bill is compared."""

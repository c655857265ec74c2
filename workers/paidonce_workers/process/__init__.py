"""One process that executes steps: the wiring of its parts, its registration, and what it releases when it stops."""

"""Where settings come from, what they refer to, and how the user's modules are loaded."""

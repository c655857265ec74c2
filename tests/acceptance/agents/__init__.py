"""The agents that the acceptance tests run."""

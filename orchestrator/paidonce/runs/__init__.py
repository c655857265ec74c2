"""From a submission to the next steps: new runs, advancing them, claiming what they request."""

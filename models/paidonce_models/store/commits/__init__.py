"""What a process has to commit for its runs, many runs in one statement."""

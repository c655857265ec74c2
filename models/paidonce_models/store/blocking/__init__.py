"""Statements that block a run or step which its code cannot continue, and that unblock it."""

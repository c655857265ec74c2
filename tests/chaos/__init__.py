"""Real workers on real engines that are killed, frozen, restarted and flushed while they work."""

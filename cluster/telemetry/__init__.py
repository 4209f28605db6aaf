"""What happened: counters, history and events."""

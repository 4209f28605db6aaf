"""What a command waits for, when that is done or has failed, and the progress line until then."""

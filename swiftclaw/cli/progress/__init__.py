"""Work that takes a while: what a command waits for, when it is done or has failed, and the line it shows meanwhile."""

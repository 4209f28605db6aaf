"""Who gets the request: the agents and their instances as one gateway sees them."""

"""From socket to socket: one request through a gateway, in the callbacks of the event loop."""

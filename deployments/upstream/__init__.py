"""The way to an instance: which attempts, what is sent and returned, connections, WebSockets."""

"""The request path to an instance: attempts, connections, WebSockets."""

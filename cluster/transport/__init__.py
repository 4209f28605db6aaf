"""Sockets and protocols that every process uses: the HTTP listener and its limits, TLS, calls to the Controller."""

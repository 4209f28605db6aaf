"""The process on the public port: routes, limits, and what gateways exchange."""

"""The control plane: what should run, what does run, and who may be sent a request."""

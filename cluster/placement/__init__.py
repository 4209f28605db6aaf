"""From desired to running: the reconciler and the one adapter to Ray Serve."""

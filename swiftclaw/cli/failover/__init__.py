"""`swiftclaw test failover`: the command, the trial, its probes and its report."""

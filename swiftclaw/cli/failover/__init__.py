"""`swiftclaw test failover`: the command, the trial with its probe requests, the evaluation, the report."""

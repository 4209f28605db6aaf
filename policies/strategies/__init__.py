"""The strategies behind `loadBalancing.strategy`: one file each, one line each in `policies.STRATEGIES`."""

"""What should run: the stored state, versions and rollouts, instance counts, frozen code."""

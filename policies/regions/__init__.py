"""Regions: how far one is from another, and where the clouds have theirs."""

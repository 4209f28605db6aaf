"""Measuring is not choosing: requests in flight, slowness, distances. Strategies read what these measure."""

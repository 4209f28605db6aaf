"""Measuring is not choosing: requests in flight, slowness. Strategies read what these measure."""

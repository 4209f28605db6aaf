"""What runs: instances, gateways, their health and their breakers, and how changes are recorded."""

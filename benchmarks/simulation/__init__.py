"""A discrete-event simulation of a fleet: the production policies against theory and other policies, without Ray."""

"""A fleet in a heap of events: the production policies against theory and against each other, without Ray."""

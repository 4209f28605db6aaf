"""Session affinity: where a session lives, and the token that a client carries."""

"""The stages of an instance: slow start, in or out of rotation, draining."""

"""The load: requests of every kind at a steady rate, each with an identity of its own, and what became of it.

A process of its own (`python -m tests.campaign.load`), so that nothing that a fault does holds it up.
"""

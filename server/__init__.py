"""Speaks HTTP, holds the queues and the models in memory. Imports no torch."""

"""How good generated images are, as numbers with intervals: takes pictures and feature networks, gives figures.

Knows nothing about jobs, adapters or how the pictures were drawn.
"""

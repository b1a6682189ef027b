"""How good drawn images are, as numbers with intervals: takes pictures and feature networks, gives figures.

Knows nothing of jobs, adapters or how the pictures were drawn.
"""

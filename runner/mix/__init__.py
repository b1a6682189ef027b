"""Trained adapters as arithmetic: read from any layout, weighted, put together, reduced, written; no training."""

"""Arithmetic on trained adapters: read from any layout, weighted, combined, reduced, written; no training."""

"""`task=merge`: merges adapters into the weights of their base, or combines them into one adapter."""

"""`task=merge`: adapters put into the weights of their base, or put together into one."""

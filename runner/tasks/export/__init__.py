"""`task=export`: writes an adapter in the layouts of other programs, with a card, and pushes it to the Hub."""

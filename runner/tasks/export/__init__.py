"""`task=export`: an adapter in the layouts of other programs, with a card, and on the Hub."""

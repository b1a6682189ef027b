"""One training loop for a pack of adapters over one frozen base; a solo run is a pack of one."""

"""From a command line to plain configurations. Only this room and the plugins know Hydra."""

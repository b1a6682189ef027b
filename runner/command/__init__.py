"""From a command line to plain configurations. Only this package and the plugins know Hydra."""

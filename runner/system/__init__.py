"""The machine and its operating system: devices, processes, locks, signals, files, and text safe for a terminal."""

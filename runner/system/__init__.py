"""What is asked of the machine and its system: devices, processes, locks, signals, files, what a terminal may have."""

"""What the machine does to a run: files, processes, signals, and how it fails."""

"""Several processes: those of a run (`team`), and what those of a step tell each other (`group`)."""

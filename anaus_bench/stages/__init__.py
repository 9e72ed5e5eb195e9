"""One function per stage: a stage is a function of its inputs and never looks at the store."""

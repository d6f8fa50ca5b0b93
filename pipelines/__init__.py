"""The command line and the wiring of each pipeline; no logic of its own."""

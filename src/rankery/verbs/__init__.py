"""One module a verb of the command line: its options (`add`) and its run. Heavy imports wait until a verb runs."""

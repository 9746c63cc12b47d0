"""The verbs of the command line, one file each, each importing what it needs when it runs."""

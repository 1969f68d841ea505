"""The command line: plain verbs. Results on stdout, talk and progress on stderr."""

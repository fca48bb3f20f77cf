"""The command line: options, lists, progress, suites."""

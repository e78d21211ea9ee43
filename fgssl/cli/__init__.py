"""The command line: it composes experiment files, parses options, checks them and runs Lightning."""

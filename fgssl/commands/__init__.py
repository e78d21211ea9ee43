"""One file a command: ``main(argv)`` runs ``fgssl <command> <argv>``."""

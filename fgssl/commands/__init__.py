"""Commands, one per file: ``main(argv)`` runs ``fgssl <command> <argv>``."""

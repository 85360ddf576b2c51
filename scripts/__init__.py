"""What an operator runs; each script stands alone and explains itself with --help."""

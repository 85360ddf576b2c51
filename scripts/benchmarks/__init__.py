"""What `scripts/just bench` measures, one module per scenario; each can be run alone with --help."""

"""How weights change: one paper, one file."""

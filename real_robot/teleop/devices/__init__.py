"""One file per device in a person's hand."""

"""What the entry points share: the run folder, logs, progress, plots. Nothing below ``train.py`` imports it."""

"""Episodes on disk -> training batches. Importing this package does not import torch."""

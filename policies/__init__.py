"""Observation -> action chunk: encoders, denoising networks, diffusion and flow heads, checkpoints."""

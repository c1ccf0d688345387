"""vae: train, sample, traverse, reconstruct and analyze variational autoencoders."""

__version__ = "0.1.0"

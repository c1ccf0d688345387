"""Sweeps: many runs of one configuration, on engines that exist."""

"""Disentanglement metrics: `evaluate` runs some of them on codes, each with its chance level and ceiling."""

"""Faster equivalents of torch's layers, optimizers and step loop; nothing here changes what is computed."""

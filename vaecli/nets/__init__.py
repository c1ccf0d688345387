"""Networks by name, and the blocks that models share."""

"""The terms of the objectives and the likelihoods, as functions of tensors."""

"""What a formula may read: operands of layers, their moments, samples and gradients, from a network or from arrays."""

"""Which channels of a network fall together: traces any Flax network and groups its channels."""

"""The commands of `jaxprune`, each a thin shell over one function."""

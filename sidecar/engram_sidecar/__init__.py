"""Data plane: the memory that an agent reaches on localhost. Knows no Kubernetes API."""

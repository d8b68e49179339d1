"""Ground of both planes: what operator and sidecar must agree on. Standard library only, no I/O, no clock."""

"""The doors of the control plane: one file per thing outside."""

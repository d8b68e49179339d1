"""What a cluster is made of: spec -> plain dicts, in the form in which the API server gives them back. Pure."""

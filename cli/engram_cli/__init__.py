"""`engram`: a whole Engram on one machine, from the manifests that a cluster takes."""

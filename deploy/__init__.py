"""How Sluice is run: on one machine without Docker, in containers, on Kubernetes."""

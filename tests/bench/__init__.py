"""How fast, against whom, on what machine: `make bench`. See README.md."""

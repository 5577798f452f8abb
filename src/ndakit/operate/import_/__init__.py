"""A profile out of a running balancer: its files are read, and every line of them is accounted for."""

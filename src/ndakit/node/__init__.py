"""A running balancer: facts about it."""

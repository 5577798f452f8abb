"""A running balancer, wherever it is: a shell on it (over SSH, or over a lab's serial console), facts about it, and
control of its servers.
"""

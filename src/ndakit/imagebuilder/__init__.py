"""Driving an ImageBuilder, real or the lab's."""

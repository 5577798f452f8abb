"""What is done with a pair after its images are built."""

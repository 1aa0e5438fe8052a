"""What is trained: the data and the network."""

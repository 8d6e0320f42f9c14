"""A local web page of one or many nodes, live: asks their admin sockets, and serves what they answer."""

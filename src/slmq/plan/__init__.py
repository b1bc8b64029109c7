"""The recorded forward pass: a straight list of steps over static buffers."""

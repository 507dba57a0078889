"""The job `supernet`: one set of weights for every placement of a space; and, on the same code, a rack without choices."""

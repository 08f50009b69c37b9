"""The running process: it builds the parts, starts them, watches over them and stops them."""

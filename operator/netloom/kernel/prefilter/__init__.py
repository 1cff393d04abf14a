"""The XDP prefilter of a node: what is wanted, the program and its maps, and who keeps them in the kernel."""

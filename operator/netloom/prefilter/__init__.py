"""What a node drops, worked out from prefilters and lists: no I/O, no `await`, and no object per entry.

A million CIDRs are a long byte string here (`rules.Entries`), of 7 MB, in the order in which the kernel takes them.
As a list of `Cidr` they would be 75 MB, as strings 60 MB, on every node.
"""

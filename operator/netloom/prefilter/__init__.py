"""What a node drops, worked out from prefilters and lists: no I/O, no `await`, and no object per entry.

A million CIDRs are two long byte strings here (`rules.Entries`), in the order and form in which the kernel takes them.
As a list of `Cidr` they would be 75 MB, as strings 60 MB, on every node.
"""

"""NetloomPrefilters on a node: which select it, on which devices, from which lists, and how they fare."""

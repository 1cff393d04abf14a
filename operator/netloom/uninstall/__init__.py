"""Netloom leaves a cluster: `netloom uninstall`, which the chart runs before it deletes a release.

    switches   the guard goes first: what refuses, then who refuses, then what was written down
    nodes      agents end, and a pod on each machine takes away what they made there
    objects    what the operator and agents wrote, with the finalizers that nobody else would take off any more

Each step finds out what is still to do and does it; killed between any two requests, the next run goes on from there.
"""

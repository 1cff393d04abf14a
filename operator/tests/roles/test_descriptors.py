"""An agent takes as many descriptors as it may need, if it may have them."""

import resource

import pytest

from netloom.roles.agent import DESCRIPTORS, raise_descriptors


@pytest.mark.parametrize("soft", [256, 1024])
def test_the_soft_limit_is_raised_and_the_hard_one_kept(soft: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        raise_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(before[1], DESCRIPTORS), before[1])
        raise_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

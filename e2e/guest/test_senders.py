"""Who is let into Geneve tunnels, by packets; VXLAN's are tried without a virtual machine."""

from tests.kernel.netns import Lab
from tests.kernel.tunnelled import GENEVE, VXLAN, Keepers, Underlay, inner, keepers, senders

__all__ = ["keepers"]

STRANGER = "192.168.7.66"


async def test_who_gets_into_geneve(keepers: Keepers) -> None:
    """With options, which none of ours sends, the inner packet is elsewhere: what stands where it is looked for is no
    proof of anything."""
    like_its_own = inner("10.3.0.5", "10.1.0.0", b"")[:34]
    lie = like_its_own + bytes(-len(like_its_own) % 4)
    lab = Lab()
    try:
        underlay = Underlay(lab, GENEVE)
        with underlay.node.entered():
            sent = [
                lambda: underlay.delivered(GENEVE, STRANGER, "10.2.0.5"),
                lambda: underlay.delivered(GENEVE, "192.168.7.2", "10.2.0.5"),
                lambda: underlay.delivered(GENEVE, "192.168.7.3", "10.2.0.5"),
                lambda: underlay.delivered(GENEVE, "192.168.7.2", "192.168.7.2"),
                lambda: underlay.delivered(GENEVE, "192.168.7.3", "10.2.0.5", options=lie),
                lambda: underlay.delivered(GENEVE, STRANGER, "10.2.0.5", options=bytes(4)),
            ]
            assert [send() for send in sent] == [6] * 6
            keeper = await keepers.open()
            await keeper.apply(senders(ports=(GENEVE, VXLAN)))
            assert [send() for send in sent] == [0, 6, 0, 6, 0, 0]
            again = await keepers.open()
            assert (await again.apply(senders(ports=(GENEVE, VXLAN)))).written == {}, (
                "this kernel writes rules as others"
            )
            await again.cleanup()
    finally:
        lab.close()

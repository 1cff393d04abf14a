"""MAC addresses as the kernel writes them: packed bytes."""

Mac = bytes
"""6 bytes."""


def parse_mac(text: str) -> Mac:
    """The packed form of `02:00:00:00:00:01`."""
    return bytes.fromhex(text.replace(":", ""))


def format_mac(mac: Mac) -> str:
    """As `ip` prints it."""
    return mac.hex(":")

"""The bench of the plugin runs to its end."""

from pathlib import Path

from netloom_e2e import bench

SCRIPT = Path(__file__).parents[2] / "bench/cni_plugin.py"


def test_the_plugin_is_measured_beside_programs_that_do_nothing() -> None:
    result = bench.result_of(SCRIPT, "--rounds=3")
    titles = {"plugin, ADD", "plugin, DEL", "plugin, VERSION", "nothing, musl", "nothing, glibc"}
    assert result["median_us"].keys() == result["least_us"].keys() == titles
    assert all(result["median_us"].values())
